"""Text and tracker figures for a selection."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from prunesampler.select.selection import Selection

logger = logging.getLogger("prunesampler")

SECONDS = {
    "measuring": "scoring",
    "curvature": "curvature",
    "solving": "solving",
    "certificate": "certificate",
}
"""What a selection's time goes into, and the name of its seconds in the metadata."""
STAGES = tuple(SECONDS)


def tell(text: str, progress: bool) -> None:
    """Write to the terminal beside the progress bars, or without them to the log."""
    if progress:
        tqdm.write(text)
    else:
        logger.info(text)


def summary(epoch: int, selection: Selection, seconds: float, epoch_seconds: float | None) -> str:
    """The lines that tell of a selection.

    Args:
        epoch: that ended before it.
        selection: of now.
        seconds: that selecting took in all.
        epoch_seconds: of the epoch before it, or None.
    """
    kept, facts = selection.num_samples - len(selection.pruned), selection.metadata
    ratio = "" if not epoch_seconds else f" = {seconds / epoch_seconds:.2f} of the last epoch"
    head = (
        f"prunesampler: after epoch {epoch} kept {kept} of {selection.num_samples} samples "
        f"({kept / selection.num_samples:.1%})"
    )
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
    if selection.proved is not None:
        lines.append(f"Proved: {selection.proved}.")
    return "\n".join(lines)


def _shares(facts: Mapping[str, Any], seconds: float, stages: Sequence[str]) -> str:
    """What share of the seconds each stage took, where it is known."""
    known = [(stage, facts.get(f"{SECONDS[stage]}_seconds")) for stage in stages]
    told = [
        f"{stage} {took / seconds:.0%}" for stage, took in known if took is not None and seconds
    ]
    return f" ({', '.join(told)})" if told else ""


def figures(selection: Selection, seconds: float) -> dict[str, float]:
    """What experiment trackers get: numbers by name, where they are known.

    Args:
        selection: of now.
        seconds: that selecting took in all.
    """
    numbers = {
        "pruning/kept": float(selection.num_samples - len(selection.pruned)),
        "pruning/shift": selection.shift,
        "pruning/seconds": seconds,
    }
    for name in ("random_shift", "random_newton_shift"):
        if selection.metadata.get(name) is not None:
            numbers[f"pruning/{name}"] = float(selection.metadata[name])
    if not math.isnan(selection.newton_shift):
        numbers["pruning/newton_shift"] = selection.newton_shift
    return numbers
