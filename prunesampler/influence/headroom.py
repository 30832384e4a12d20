"""Whether leaving out the easy samples can pay: the share of the gradient that the hardest half holds."""

from __future__ import annotations

import math

from torch import Tensor

PAYS, COSTS = 0.9, 0.8
"""Above the one, half of the samples hardly pull at the layer; below the other all of them do."""


def headroom(errors: Tensor) -> float:
    """Share of the sum of ``||delta_i||`` that the hardest half of the samples holds, 0.5 to 1.

    Near one, the easier half has almost no gradient, and leaving it out loses little. At 0.7, half of
    the samples hold three tenths of it: then fewer epochs on all of them are the better way to save.

    Args:
        errors: Norm of the gradient of each loss with respect to the layer's outputs, shape (n,); NaN
            where it is not known.

    Returns:
        The share, or NaN if nothing is known, or all is zero.

    Examples:
        >>> import torch
        >>> round(headroom(torch.tensor([0.0, 0.1, 0.3, 0.6])), 3)
        0.9
    """
    known = errors[~errors.isnan()].double().sort(descending=True).values
    total = float(known.sum())
    if not total > 0:
        return math.nan
    half, odd = divmod(len(known), 2)  # of an odd number the middle one counts half
    held = float(known[:half].sum()) + (float(known[half]) / 2 if odd else 0.0)
    return held / total


def advice(share: float) -> str:
    """What a headroom says, in a sentence.

    Examples:
        >>> advice(0.7)
        'headroom 0.70: easy samples still pull, so fewer epochs on all beat leaving them out'
    """
    if math.isnan(share):
        return "headroom unknown: no sample has a gradient"
    if share > PAYS:
        return f"headroom {share:.2f}: the easier half hardly pulls, so leaving it out can pay"
    if share < COSTS:
        return f"headroom {share:.2f}: easy samples still pull, so fewer epochs on all beat leaving them out"
    return f"headroom {share:.2f}: leaving out easy samples may pay a little, later in the run more"
