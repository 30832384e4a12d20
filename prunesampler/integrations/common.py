"""What the callbacks of all frameworks share."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

from prunesampler.callback import PruningCallback
from prunesampler.pruner import InfluencePruner
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.schedule import Schedule
from prunesampler.selection import Selection


def require(packages: tuple[str, ...], minimum: str, extra: str) -> None:
    """Check that one of these packages is installed, and new enough.

    Raises:
        ImportError: when it is not, with the command that installs it.
    """
    remedy = f'pip install "prunesampler[{extra}]"'
    for package in packages:
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if _numbers(installed) < _numbers(minimum):
            raise ImportError(
                f"{package} {installed} is too old: prunesampler.integrations.{extra} needs "
                f"{minimum} or newer; {remedy}"
            )
        return
    raise ImportError(
        f"prunesampler.integrations.{extra} needs {' or '.join(packages)}, which is not installed; "
        f"{remedy}"
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Major and minor of a version."""
    return tuple(int(part) for part in text.split(".")[:2])


class HoldsPruning:
    """Makes the `prunesampler.PruningCallback` that a framework's callback drives.

    Args:
        sampler: of the training loader. The framework shares out the batches: leave ``num_replicas``
            at 1.
        pruner: over the same samples, without augmentation.
        warmup_epochs: epochs on all samples before the first selection, at least 1.
        refresh_every: measure and select again every so many epochs after the first time.
        redraw_every: draw another set every so many epochs after the first time, without measuring.
        final_full_epochs: train on all samples in the last epochs.
        on_selection: called with every selection, after the sampler was restricted.

    Attributes:
        pruning: the callback that is driven.

    Raises:
        ValueError: for numbers out of range, or a pruner over another number of samples.
    """

    def __init__(
        self,
        sampler: InfluencePrunedSampler,
        pruner: InfluencePruner,
        *,
        warmup_epochs: int = 5,
        refresh_every: int | None = None,
        redraw_every: int | None = None,
        final_full_epochs: int = 0,
        on_selection: Callable[[Selection], None] | None = None,
    ) -> None:
        self.pruning = PruningCallback(
            sampler,
            pruner,
            warmup_epochs=warmup_epochs,
            refresh_every=refresh_every,
            redraw_every=redraw_every,
            on_selection=on_selection,
        )
        self._schedule = Schedule(warmup_epochs, refresh_every, redraw_every, final_full_epochs)
        self.pruning.schedule = self._schedule

    @property
    def sampler(self) -> InfluencePrunedSampler:
        """Of the training loader."""
        return self.pruning.sampler

    @property
    def selection(self) -> Selection | None:
        """The last selection in this process, or None."""
        return self.pruning.selection

    def expect_epochs(self, epochs: int) -> None:
        """Learn from the framework how long the run is."""
        self.pruning.schedule = self._schedule.lasting(epochs)
