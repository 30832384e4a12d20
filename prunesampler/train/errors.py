"""Errors of samples from gradients that a training pass computes anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FITS = 0.05
"""Largest part of the gradients that a cross-entropy may leave unexplained."""
FLOOR = (-0.1, 0.5)
"""Share of an even target that every class may have: none up to rounding, or a label smoothing's."""
SUMMED = 1e-5
"""Relative error of the means that are formed here, in single precision."""
ROWS, NUMBERS = 16, 2**12
"""Of more rows, and more numbers, only some are looked at, so that many classes or tokens cost little."""
PULLED = 1e-6
"""Share of the largest gradient below which an output counts as not pulled at."""


@dataclass(frozen=True)
class Scale:
    """The factor between a loss's gradient by the layer's outputs and what arrives there.

    Args:
        factor: Shape (), on the device of the gradients: one over the batch size, the number of batches that
            are accumulated, the loss scaler, together.
        unexplained: Part of the gradients that a cross-entropy with this factor leaves, shape ().
        floor: Share of an even target that every class has, as label smoothing gives it, shape ().
        rounding: The part that the precision of the gradients may leave, shape ().

    Example:
        >>> outputs = torch.randn(64, 5, requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, torch.arange(64) % 5).backward()
        >>> scale = scale_of(outputs.detach(), outputs.grad)
        >>> round(float(1 / scale.factor), 2), bool(scale.tells), bool(scale.fits)
        (64.0, True, True)
    """

    factor: Tensor
    unexplained: Tensor
    floor: Tensor
    rounding: Tensor

    @property
    def tells(self) -> Tensor:
        """Whether outputs differ enough to tell: not those of a layer that begins with zeros."""
        return self.rounding < 0.5

    @property
    def fits(self) -> Tensor:
        """Whether the loss is a cross-entropy, boolean, shape ()."""
        low, high = FLOOR
        line = (self.unexplained < FITS + self.rounding) & (self.factor > 0)
        return line & (self.floor > low - self.rounding) & (self.floor < high + self.rounding)


def scale_of(outputs: Tensor, gradients: Tensor) -> Scale:
    """The factor of a softmax cross-entropy, by least squares.

    Where the target is zero, or the little that label smoothing puts everywhere, the gradient is
    ``factor * (p - constant)``, whatever the target is elsewhere. So the factor is the slope of gradients over
    probabilities among the outputs that are pulled down, and whether they lie on a line tells whether the
    loss is one.

    Args:
        outputs: Outputs of the layer, shape (b, ..., C).
        gradients: Gradients of the whole loss with respect to them, of the same shape.
    """
    classes = outputs.shape[-1]
    p, g = outputs.detach().reshape(-1, classes), gradients.reshape(-1, classes)
    rows = max(ROWS, NUMBERS // classes)
    if (
        len(p) > rows
    ):  # those of the largest gradients, since tokens may be ignored, and of all others some
        some = torch.arange(0, len(p), -(-2 * len(p) // rows), device=p.device)
        some = torch.cat([g.norm(dim=1).topk(rows // 2).indices, some])
        p, g = p[some], g[some]
    p, g = p.float().softmax(-1), g.float()
    down = (g > PULLED * g.abs().amax()) & (
        p < 0.5
    )  # the label's own, too, may pass a smooth target
    count = down.sum().clamp(min=1)
    mean_p, mean_g = (p * down).sum() / count, (g * down).sum() / count
    dp, dg = (p - mean_p) * down, (g - mean_g) * down
    least = torch.finfo(torch.float32).tiny
    rounded = max(torch.finfo(gradients.dtype).eps, SUMMED)
    factor = (dp * dg).sum() / dp.square().sum().clamp(min=least)
    unexplained = (dg - factor * dp).norm() / dg.norm().clamp(min=least)
    floor = (mean_p - mean_g / factor) * classes
    rounding = rounded * (p * down).norm() / dp.norm().clamp(min=least)
    rounding = torch.where(down.any(), rounding, math.inf)
    return Scale(factor, unexplained, floor, rounding)


def error_norms(gradients: Tensor) -> Tensor:
    """Norm of every sample's gradient, over all positions and outputs, float32, shape (b,).

    Example:
        >>> error_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    found: Tensor = gradients.detach().float().flatten(1).norm(dim=1)
    return found


class Units:
    """Errors of one batch after another, all in units of the loss or all in shares of their batch's mean.

    Which of them is decided by the first batch that tells. Nothing waits for the device after that.

    Args:
        exact: Whether they are in units of the loss, or None where that is not known yet.

    Attributes:
        exact: the same, once it is known.

    Example:
        >>> outputs = torch.tensor([[0.3, 0.7, 0.1], [0.1, 0.2, 0.6]], requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1])).backward()
        >>> units = Units()
        >>> units.errors(outputs, outputs.grad), units.exact
        (tensor([0.8668, 0.8728]), True)
    """

    def __init__(self, exact: bool | None = None) -> None:
        self.exact = exact
        self._factor: Tensor | None = None  # times the batch size, of the last cross-entropy

    def errors(self, outputs: Tensor, gradients: Tensor) -> Tensor | None:
        """Error of every sample, float32, shape (b,), NaN after an overflow; None if nothing can be told."""
        norms, size, scale = error_norms(gradients), len(gradients), None
        if self.exact is not False and outputs.dim() in (2, 3) and outputs.shape[-1] > 1:
            scale = scale_of(outputs, gradients)
        if self.exact is None:
            if not norms.any():
                return norms
            # A loss scaler may overflow at first, and a layer may begin with zeros.
            if not gradients.isfinite().all() or (scale is not None and not scale.tells):
                return None
            self.exact = scale is not None and bool(scale.fits)
        if self.exact and scale is not None:
            factor = scale.factor * size
            if self._factor is not None:
                factor = torch.where(scale.fits, factor, self._factor)
            self._factor = factor
            found = norms * size / factor
        else:
            mean = norms.mean()
            found = (
                norms / torch.where(mean == 0, 1.0, mean) + 0 * mean
            )  # NaN for all if one overflows
        return torch.where(found.isfinite(), found, math.nan)
