"""Which epochs run on all samples, and before which a set is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from prunesampler.base.checks import warn


class Due(Enum):
    """What is to be done before an epoch.

    Example:
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
    """Which epochs run on what. Epochs count from 0; ``epoch`` is always the coming one.

    Args:
        warmup_epochs: number of epochs on all samples before the first selection, at least 1.
        refresh_every: number of epochs between two selections, each measured anew, or None.
        redraw_every: number of epochs between two sets drawn from the same scores, or None.
        final_full_epochs: number of epochs on all samples at the end, once ``epochs`` is known.
        epochs: number of epochs of the run, or None where unknown. Nothing is chosen at its end.

    Raises:
        ValueError: for numbers out of range.

    Example:
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
            ValueError: when it was made for another number.
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
        """What is to be done before this epoch.

        Args:
            epoch: the coming epoch.
            missed: whether a selection should have been made before and was not.
            first: whether nothing was done in this run so far.
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
        """Whether it is one of the last epochs, on all samples."""
        if not self.final_full_epochs or self.epochs is None:
            return False
        return epoch >= self.epochs - self.final_full_epochs

    def prunes(self, epoch: int) -> bool:
        """Whether it runs on the kept samples."""
        return epoch >= self.warmup_epochs and not self.ends_pruning(epoch)

    def prunes_from(self, epoch: int) -> bool:
        """Whether it or a later epoch runs on the kept samples, as far as known."""
        last = self.epochs
        return last is None or any(self.prunes(coming) for coming in range(epoch, last))

    def over(self, epoch: int) -> bool:
        """Whether the run is known to have ended."""
        return self.epochs is not None and epoch >= self.epochs


def _is_multiple(since: int, every: int | None) -> bool:
    return every is not None and since % every == 0
