"""Selecting on rank 0 for all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group, together
from prunesampler.base.progress import Progress, advance, progress_bar
from prunesampler.influence.weights import kept_weights
from prunesampler.select.frontier import Frontier
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.select.selector import Selector


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

    Examples:
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


def frontier_together(
    scores: Scores | None, selector: Selector, fractions: Sequence[float], shown: bool
) -> Frontier:
    """Select at every fraction on rank 0 and send all to all ranks; all processes must call this.

    A warning tells, once for all fractions, at which the set is no better than a random one.

    Args:
        scores: Scores on rank 0; None on the others.
        selector: How to select.
        fractions: Shares of the dataset to prune.
        shown: Whether to show a progress bar.

    Raises:
        RuntimeError: If rank 0 failed.
    """
    group = current_group()

    def solve() -> list[bytes]:
        if scores is None:
            return [b""] * len(fractions)
        with progress_bar("solving", 1, shown) as bar:
            found = selector.frontier(scores, fractions, advance(bar))
        return [selection.to_bytes() for selection in found]

    data = [group.broadcast_bytes(part) for part in together(group, solve)]
    frontier = Frontier(tuple(Selection.from_bytes(part) for part in data))
    if frontier.doubts and group.rank == 0:
        warn(frontier.doubts)
    return frontier


def weigh_together(scores: Scores | None, selection: Selection, spread: float) -> Tensor:
    """Weigh the kept samples on rank 0 and send the weights to all ranks; all must call this.

    Args:
        scores: Scores on rank 0; None on the others.
        selection: Which samples are kept.
        spread: Largest root mean square of the weights less one.

    Raises:
        ValueError: If the selection is of another dataset, or ``spread`` is not positive.
        RuntimeError: If rank 0 failed.
    """
    group = current_group()

    def weigh() -> bytes | None:
        if scores is None:
            return None
        if selection.num_samples != len(scores.influence):
            raise ValueError(
                f"the selection is of {selection.num_samples} samples, the scores are of "
                f"{len(scores.influence)}; weigh with the scores that it was chosen from"
            )
        return kept_weights(scores.influence, selection.kept, spread).numpy().tobytes()

    data = group.broadcast_bytes(together(group, weigh))
    return torch.frombuffer(bytearray(data), dtype=torch.float32)
