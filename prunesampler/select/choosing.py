"""Selecting on rank 0 for all processes."""

from __future__ import annotations

from typing import Protocol

from prunesampler.base.processes import current_group, together
from prunesampler.base.progress import Progress, advance, progress_bar
from prunesampler.influence.scores import Scores
from prunesampler.select.selection import Selection


class Chooser(Protocol):
    """A function that selects from scores."""

    def __call__(self, scores: Scores, *, progress: Progress | None) -> Selection:
        """Return a selection; ``progress`` is called as the work advances."""


def choose_together(scores: Scores | None, choose: Chooser, name: str, shown: bool) -> Selection:
    """Select on rank 0 and send the selection to all ranks; all processes must call this.

    Args:
        scores: Scores on rank 0; None on the others.
        choose: Function that selects.
        name: Title of the progress bar.
        shown: Whether to show the bar.

    Raises:
        RuntimeError: If rank 0 failed, or the kept sets differ.

    Example:
        >>> import torch
        >>> from prunesampler import Budget
        >>> found = Selection(torch.tensor([1, 3]), 5, 0.1, 0.1, None, Budget(count=2))
        >>> choose_together(..., lambda scores, progress: found, "solving", False).kept.tolist()
        [0, 2, 4]
    """
    group = current_group()

    def solve() -> bytes | None:
        if scores is None:
            return None
        with progress_bar(name, 1, shown) as bar:
            return choose(scores, progress=advance(bar)).to_bytes()

    selection = Selection.from_bytes(group.broadcast_bytes(together(group, solve)))
    group.check_equal("the kept sets", selection.kept.numpy().tobytes())
    return selection
