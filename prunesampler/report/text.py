"""Text and tracker figures for a selection."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm import tqdm

from prunesampler.influence.headroom import advice
from prunesampler.select.selection import Selection

logger = logging.getLogger("prunesampler")

STAGES = ("measuring", "curvature", "solving", "certificate")
"""Stages of a selection; its metadata holds the seconds of each, such as `measuring_seconds`."""


def tell(text: str, progress: bool) -> None:
    """Write a text to the terminal if progress bars are shown there, otherwise to the log.

    Examples:
        >>> tell("kept 4 of 6 samples", progress=False)  # INFO of the logger "prunesampler"
    """
    if progress:
        tqdm.write(text)
    else:
        logger.info(text)


def summary(epoch: int, selection: Selection, seconds: float, epoch_seconds: float | None) -> str:
    """Describe a selection in four or five lines, a redraw, or a choice without a shift, in one.

    Args:
        epoch: Epoch that ended before the selection.
        selection: Selection to describe.
        seconds: Number of seconds that selecting took in all.
        epoch_seconds: Number of seconds that the epoch before it took, or None.

    Examples:
        >>> import torch
        >>> from prunesampler import Budget
        >>> selection = Selection(torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2))
        >>> summary(4, selection, 10.0, 20.0).splitlines()[:2]  # doctest: +NORMALIZE_WHITESPACE
        ['prunesampler: after epoch 4 kept 4 of 6 samples (66.7%)',
         'It took 10.0 s = 0.50 of the last epoch.']
    """
    kept, facts = selection.num_samples - len(selection.pruned), selection.metadata
    ratio = "" if not epoch_seconds else f" = {seconds / epoch_seconds:.2f} of the last epoch"
    head = (
        f"prunesampler: after epoch {epoch} kept {kept} of {selection.num_samples} samples "
        f"({kept / selection.num_samples:.1%})"
    )
    meter = "" if facts.get("headroom") is None else advice(facts["headroom"])
    if facts.get("by") is not None:
        return f"{head}, chosen by {facts['by']}; {meter}"
    if math.isnan(selection.newton_shift):
        random = facts.get("random_shift")
        beside = "" if random is None else f" (random set {random:.3g})"
        return (
            f"{head}, drawn again; predicted shift {selection.shift:.3g} first order{beside}; "
            f"{seconds:.1f} s{_shares(facts, seconds, ('solving',))}{ratio}"
        )
    layer = f", chosen by layer {facts['layer']!r}" if facts.get("layer") else ""
    lines = [
        f"{head}{layer}",
        f"It took {seconds:.1f} s{ratio}{_shares(facts, seconds, STAGES)}.",
        selection.verdict,
    ]
    if meter:
        lines.append(f"For networks trained from scratch: {meter}.")
    if selection.proved is not None:
        lines.append(f"Proved: {selection.proved}.")
    return "\n".join(lines)


def _shares(facts: Mapping[str, Any], seconds: float, stages: Sequence[str]) -> str:
    """The share of the time that each stage took, if known, as text in brackets."""
    known = [(stage, facts.get(f"{stage}_seconds")) for stage in stages]
    told = [
        f"{stage} {took / seconds:.0%}" for stage, took in known if took is not None and seconds
    ]
    return f" ({', '.join(told)})" if told else ""


def figures(selection: Selection, seconds: float) -> dict[str, float]:
    """The known figures of a selection by name, for experiment trackers.

    Args:
        selection: Selection to describe.
        seconds: Number of seconds that selecting took in all.

    Examples:
        >>> import torch
        >>> from prunesampler import Budget
        >>> selection = Selection(torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2))
        >>> figures(selection, 10.0)["pruning/kept"]
        4.0
    """
    numbers = {
        "pruning/kept": float(selection.num_samples - len(selection.pruned)),
        "pruning/seconds": seconds,
    }
    if not math.isnan(selection.shift):
        numbers["pruning/shift"] = selection.shift
    for name in ("random_shift", "random_newton_shift", "headroom"):
        if selection.metadata.get(name) is not None:
            numbers[f"pruning/{name}"] = float(selection.metadata[name])
    if not math.isnan(selection.newton_shift):
        numbers["pruning/newton_shift"] = selection.newton_shift
    return numbers
