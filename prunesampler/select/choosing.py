"""Choosing on one process for all of them."""

from __future__ import annotations

from typing import Protocol

from prunesampler.base.processes import current_group, together
from prunesampler.base.progress import Progress, advance, progress_bar
from prunesampler.influence.scores import Scores
from prunesampler.select.selection import Selection


class Chooser(Protocol):
    """Takes a selection from scores."""

    def __call__(self, scores: Scores, *, progress: Progress | None) -> Selection:
        """A selection; ``progress`` is told how far it is."""


def choose_together(scores: Scores | None, choose: Chooser, name: str, shown: bool) -> Selection:
    """Choose on rank 0, and give the same selection to all; all processes call this.

    Args:
        scores: on rank 0; None on the others.
        choose: takes the selection.
        name: of the progress bar.
        shown: whether there is one.

    Raises:
        RuntimeError: when rank 0 failed, or the kept sets differ.
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
