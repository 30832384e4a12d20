"""What the callback asks of a pruner."""

from __future__ import annotations

from typing import Any, Protocol

from torch import nn

from prunesampler.base.checks import warn
from prunesampler.pruner import InfluencePruner
from prunesampler.select.selection import Selection
from prunesampler.solve.budget import Budget
from prunesampler.train.recorder import TrajectoryRecorder


class Pruner(Protocol):
    """Chooses, before an epoch, which samples of a dataset to leave out.

    For a pruner of your own, inherit from this class, set the two attributes and write `choose`.

    Attributes:
        num_samples: number of samples n.
        budget: how much to prune; the callback plans the number of steps by it.
        progress: whether progress is shown in the terminal.
        outline: what is known of the dataset, to compare with that of a state, or None.
        recorder: recorder that the callback tells of the end of each epoch, or None.
        changes: whether the samples are meant to be others in every epoch, so that a callback without
            ``refresh_every`` is worth a warning.

    Examples:
        >>> import torch
        >>> class EveryThird(Pruner):
        ...     num_samples, budget = 9, Budget(count=3)
        ...     def choose(self, epoch, model):
        ...         pruned = torch.arange(epoch % 3, 9, 3)
        ...         return Selection(pruned, 9, float("nan"), float("nan"), None, self.budget)
        >>> EveryThird().choose(1, None).kept.tolist()
        [0, 2, 3, 5, 6, 8]
    """

    num_samples: int
    budget: Budget
    progress: bool = True
    outline: str | None = None
    recorder: TrajectoryRecorder | None = None
    changes: bool = False

    def choose(self, epoch: int, model: nn.Module) -> Selection:
        """The samples to prune in this coming epoch; all processes call it and get the same.

        Args:
            epoch: The coming epoch, counted from 0.
            model: Model as it is trained.
        """

    def check(self, model: nn.Module) -> None:
        """Find mistakes after the first epoch; by default this checks nothing."""

    def check_order(self, training_set: Any) -> None:
        """Warn if samples are not in the training set's order; by default this checks nothing."""

    def look(self) -> str | None:
        """Look at the dataset, and return ``outline``."""
        return self.outline


def check_schedule(pruner: Pruner, redraw_every: int | None, refresh_every: int | None) -> None:
    """Check that a pruner can choose as often as it is to, and warn where it would choose too rarely.

    Args:
        pruner: The pruner.
        redraw_every: Number of epochs between two sets from the same scores, or None.
        refresh_every: Number of epochs between two selections, or None.

    Raises:
        ValueError: If sets are to be drawn from scores, and the pruner has none.

    Examples:
        >>> check_schedule(InfluencePruner([1, 2, 3], budget=Budget(count=1)), 1, None)
    """
    if redraw_every is not None and not isinstance(pruner, InfluencePruner):
        raise ValueError(
            f"redraw_every={redraw_every} draws from an InfluencePruner's scores, and the pruner is a "
            f"{type(pruner).__name__}; use refresh_every= instead"
        )
    if refresh_every is None and getattr(pruner, "changes", False):
        warn(
            f"the samples of a {type(pruner).__name__} are meant to be others in every epoch, and without "
            "refresh_every= they are chosen once; give refresh_every=1"
        )
