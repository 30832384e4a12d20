"""What is said of a selection."""

from __future__ import annotations

import logging
import math

from tqdm.auto import tqdm

from prunesampler.selection import Selection

logger = logging.getLogger("prunesampler")


def tell(text: str, progress: bool) -> None:
    """Write to the terminal beside the progress bars, or without them to the log."""
    if progress:
        tqdm.write(text)
    else:
        logger.info(text)


def summary(epoch: int, selection: Selection, seconds: float, epoch_seconds: float | None) -> str:
    """The lines that tell of a selection; seconds are of selecting, and of the epoch before it."""
    kept = selection.num_samples - len(selection.pruned)
    facts = selection.metadata
    scoring, solving = facts["scoring_seconds"], facts["solving_seconds"]
    ratio = "" if not epoch_seconds else f" = {seconds / epoch_seconds:.2f} of the last epoch"
    head = (
        f"prunesampler: after epoch {epoch} kept {kept} of {selection.num_samples} samples "
        f"({kept / selection.num_samples:.1%})"
    )
    if math.isnan(selection.newton_shift):
        return (
            f"{head}, drawn again; predicted shift {selection.shift:.3g} first order (random set "
            f"{facts['random_shift']:.3g}); {seconds:.1f} s (solving {solving:.1f}){ratio}"
        )
    return (
        f"{head}; {seconds:.1f} s (scoring {scoring:.1f}, solving {solving:.1f}){ratio}\n"
        + selection.certificate
    )


def figures(selection: Selection, seconds: float) -> dict[str, float]:
    """What experiment trackers get: numbers by name; seconds are of selecting."""
    numbers = {
        "pruning/kept": float(selection.num_samples - len(selection.pruned)),
        "pruning/shift": selection.shift,
        "pruning/random_shift": float(selection.metadata["random_shift"]),
        "pruning/seconds": seconds,
    }
    if not math.isnan(selection.newton_shift):
        numbers["pruning/newton_shift"] = selection.newton_shift
    return numbers
