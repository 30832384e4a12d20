"""Which epochs run on all samples, and before which epochs a set is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from prunesampler.base.checks import warn


class Due(Enum):
    """The work to be done before an epoch.

    Examples:
        >>> EpochsPlan(warmup_epochs=2).due(2, missed=False, first=False).name
        'SELECTION'
    """

    NOTHING = "nothing"
    TRIAL = "measure a batch, to find now what would fail after the warm-up"
    SELECTION = "measure all samples and select"
    REDRAW = "draw another set from the scores at hand"
    ALL_SAMPLES = "keep all samples again"


@dataclass(frozen=True)
class EpochsPlan:
    """Which epochs run on which samples. Epochs count from 0; ``epoch`` is the coming one.

    Args:
        warmup_epochs: Number of epochs on all samples before the first selection, at least 1.
        refresh_every: Number of epochs between two selections, each measured anew, or None.
        redraw_every: Number of epochs between two sets drawn from the same scores, or None.
        final_full_epochs: Number of epochs on all samples at the end, if ``epochs`` is known.
        epochs: Number of epochs of the run, or None where unknown. Nothing is chosen at its end.

    Raises:
        ValueError: For numbers out of range.

    Examples:
        >>> plan = EpochsPlan(warmup_epochs=2, final_full_epochs=1, epochs=5)
        >>> [plan.prunes(epoch) for epoch in range(5)]
        [False, False, True, True, False]
    """

    warmup_epochs: int
    refresh_every: int | None = None
    redraw_every: int | None = None
    final_full_epochs: int = 0
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.warmup_epochs < 1:
            raise ValueError(
                f"warmup_epochs must be at least 1, got {self.warmup_epochs}: influence is measured "
                "on a trained model"
            )
        for name in ("refresh_every", "redraw_every"):
            every = getattr(self, name)
            if every is not None and every < 1:
                raise ValueError(f"{name} must be at least 1 or None, got {every}")
        if self.final_full_epochs < 0:
            raise ValueError(f"final_full_epochs must be at least 0, got {self.final_full_epochs}")
        if self.epochs is not None and self.warmup_epochs + self.final_full_epochs >= self.epochs:
            warn(
                f"nothing will be pruned: warmup_epochs={self.warmup_epochs} and "
                f"final_full_epochs={self.final_full_epochs} fill the run of {self.epochs} epochs"
            )

    def lasting(self, epochs: int) -> EpochsPlan:
        """The same plan for a run of this many epochs.

        Raises:
            ValueError: If it was made for another number of epochs.
        """
        if self.epochs not in (None, epochs):
            raise ValueError(f"epochs={epochs}, but the callback was made for epochs={self.epochs}")
        if self.epochs == epochs:
            return self
        return EpochsPlan(  # not dataclasses.replace: a warning would point into that module
            self.warmup_epochs,
            self.refresh_every,
            self.redraw_every,
            self.final_full_epochs,
            epochs,
        )

    def due(self, epoch: int, *, missed: bool, first: bool) -> Due:
        """The work to be done before this epoch.

        Args:
            epoch: The coming epoch.
            missed: Whether an earlier selection was due but not made.
            first: Whether this is the first call in the run.
        """
        if self.ends_pruning(epoch):
            return Due.ALL_SAMPLES
        if self.over(epoch):
            return Due.NOTHING
        since = epoch - self.warmup_epochs
        if since >= 0 and (missed or since == 0 or _is_multiple(since, self.refresh_every)):
            return Due.SELECTION
        if since >= 0 and _is_multiple(since, self.redraw_every):
            return Due.REDRAW
        return Due.TRIAL if first and self.prunes_from(epoch) else Due.NOTHING

    def ends_pruning(self, epoch: int) -> bool:
        """Whether this epoch is one of the last ones, which run on all samples."""
        if not self.final_full_epochs or self.epochs is None:
            return False
        return epoch >= self.epochs - self.final_full_epochs

    def prunes(self, epoch: int) -> bool:
        """Whether this epoch runs on the kept samples."""
        return epoch >= self.warmup_epochs and not self.ends_pruning(epoch)

    def prunes_from(self, epoch: int) -> bool:
        """Whether this or a later epoch runs on the kept samples; true if the end is unknown."""
        last = self.epochs
        return last is None or any(self.prunes(coming) for coming in range(epoch, last))

    def over(self, epoch: int) -> bool:
        """Whether the run is known to end before this epoch."""
        return self.epochs is not None and epoch >= self.epochs


def _is_multiple(since: int, every: int | None) -> bool:
    return every is not None and since % every == 0
