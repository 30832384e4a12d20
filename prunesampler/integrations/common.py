"""The part that the callbacks of all frameworks share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from torch import nn

from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.handed_out import draws_from_ours
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.selection import Selection
from prunesampler.train.callback import PruningCallback
from prunesampler.train.counting import checked_on_error
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.recorder import TrajectoryRecorder


def require(packages: tuple[str, ...], minimum: str, extra: str) -> None:
    """Check that one of these packages is installed and new enough; release candidates count.

    Args:
        packages: Names of packages, any of which will do.
        minimum: Oldest version that works.
        extra: Extra of prunesampler that installs one.

    Raises:
        ImportError: If none is; the message holds the command that installs one.

    Examples:
        >>> require(("torch",), "2.0", "lightning")
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


def _numbers(text: str) -> tuple[float, float]:
    """Major and minor number of a version; infinite where it has none."""
    found = re.match(r"\D*(\d+)(?:\.(\d+))?", text)
    if found is None:  # a custom build is not refused
        return (math.inf, math.inf)
    return (int(found[1]), int(found[2] or 0))


class HoldsPruning:
    """Makes the `prunesampler.PruningCallback` that a framework's callback drives.

    The arguments are those of `prunesampler.PruningCallback`, without the number of epochs, which the
    framework knows. It also shares out the batches, so leave the sampler's ``num_replicas`` at 1.

    Args:
        sampler: Sampler of the training loader or, if the trainer makes its data, a function of the
            trainer that returns it. It is called once in a run, when it is first needed.
        pruner: Pruner over the same samples, or a function of the trainer that returns it.

    Raises:
        ValueError: For numbers out of range, or a pruner over another number of samples.

    Examples:
        As a base class, with the methods that the framework calls::

            class MyCallback(HoldsPruning, FrameworkCallback):
                def on_epoch_end(self, trainer):
                    self.pruning.on_epoch_end(trainer.epoch, trainer.model)

        >>> from prunesampler import Budget
        >>> pruner = InfluencePruner(range(6), budget=Budget(count=2))
        >>> HoldsPruning(InfluencePrunedSampler(range(6)), pruner).pruning.planned_lengths(7)
        [6, 6, 6, 6, 6, 4, 4]
    """

    def __init__(
        self,
        sampler: InfluencePrunedSampler | Callable[[Any], InfluencePrunedSampler],
        pruner: InfluencePruner | Callable[[Any], InfluencePruner],
        *,
        warmup_epochs: int = 5,
        refresh_every: int | None = None,
        redraw_every: int | None = None,
        final_full_epochs: int = 0,
        on_selection: Callable[[Selection], None] | None = None,
        scores_dir: str | os.PathLike[str] | None = None,
        on_error: Literal["raise", "continue"] = "raise",
        recorder: TrajectoryRecorder | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        checked_on_error(on_error)  # at once, not when functions of the trainer are called
        self._given: tuple[Any, Any] = (sampler, pruner)
        self._make = partial(
            PruningCallback,
            warmup_epochs=warmup_epochs,
            refresh_every=refresh_every,
            redraw_every=redraw_every,
            on_selection=on_selection,
            scores_dir=scores_dir,
            on_error=on_error,
            recorder=recorder,
            report=report,
        )
        # The plan of a run of any length, and that of the current run once its length is known.
        self._any_plan = EpochsPlan(warmup_epochs, refresh_every, redraw_every, final_full_epochs)
        self._plan = self._any_plan
        self._trainer: Any = None  # once it is known
        self._log: Callable[[dict[str, float], int], Any] | None = None
        self._held: PruningCallback | None = None
        self._before: Selection | None = None  # the last selection of a run that goes on
        self._waiting: Mapping[str, Any] | None = None  # a state, until it can be loaded
        self._late = _is_function(sampler) or _is_function(pruner)
        if not self._late:
            self._hold()

    @property
    def pruning(self) -> PruningCallback:
        """The `prunesampler.PruningCallback` that the framework's callback drives.

        Raises:
            RuntimeError: If sampler or pruner are functions of a trainer that is not known yet.
        """
        return self._held or self._hold()

    @property
    def sampler(self) -> InfluencePrunedSampler:
        """The sampler of the training loader."""
        return self.pruning.sampler

    @property
    def selection(self) -> Selection | None:
        """The last selection in this process, or None."""
        return None if self._held is None else self._held.selection

    def meet(self, trainer: Any) -> None:
        """Set the trainer of the run, which is passed to functions of the trainer."""
        self._trainer = trainer

    def expect_epochs(self, epochs: int | None) -> None:
        """Set the number of epochs of the run; None if the framework does not know it."""
        self._plan = self._any_plan if epochs is None else self._any_plan.lasting(epochs)
        if self._held is not None:
            self._held.plan = self._plan

    def record(self, loaders: list[Any], model: nn.Module) -> None:
        """Attach the recorder, if there is one, to the loader that draws from the sampler."""
        recorder = self.pruning.recorder
        if recorder is not None:
            ours = [loader for loader in loaders if draws_from_ours(loader)]
            recorder.attach((ours or loaders)[0], model)

    def log_to(self, log: Callable[[dict[str, float], int], Any]) -> None:
        """Call this function with the figures of every selection, and the step."""
        self._log = log
        if self._held is not None:
            self._held.log = log

    def state_dict(self) -> dict[str, Any]:
        """As `prunesampler.PruningCallback.state_dict`; empty before there is any data."""
        if self._held is None:
            return dict(self._waiting or {})
        return self._held.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `prunesampler.PruningCallback.load_state_dict`; waits until there is data."""
        if self._held is None and self._trainer is None:
            self._waiting = state_dict
        else:
            self.pruning.load_state_dict(state_dict)

    def begin_run(self, *, anew: bool) -> None:
        """Begin or continue a run, and let functions of the trainer be called again.

        They are called again because a trainer may make new data at the beginning of each run.

        Args:
            anew: Whether the run begins with its first epoch.
        """
        held = self._held
        if held is None:
            return
        if anew:
            held.reset()
        held.sampler.listening.called()  # the framework will call it, so no warning is needed
        if self._late:
            self._held, self._waiting = None, None if anew else held.state_dict()
            self._before = None if anew else held.selection

    def _hold(self) -> PruningCallback:
        """Make the callback, and pass on what was set before it existed."""
        made = self._make(*self._objects())
        made.plan, made.log, made.managed = self._plan, self._log, True
        made.selection = self._before
        if self._trainer is not None:
            made.sampler.listening.called()  # the framework will call it, so no warning is needed
        if self._waiting is not None:
            made.load_state_dict(self._waiting)
        self._held, self._waiting = made, None
        return made

    def _objects(self) -> tuple[Any, Any]:
        """The sampler and the pruner, made by their functions where functions were given.

        Raises:
            RuntimeError: If a function was given and the trainer is not known yet.
            TypeError: If the result is not a sampler and a pruner.
        """
        if self._late and self._trainer is None:
            raise RuntimeError(
                "sampler= or pruner= is a function of the trainer, which is not known before its run "
                "begins; ask later, as in configure_optimizers(), or give the objects themselves"
            )
        sampler, pruner = (
            given(self._trainer) if _is_function(given) else given for given in self._given
        )
        for name, made in (("InfluencePrunedSampler", sampler), ("InfluencePruner", pruner)):
            if not hasattr(made, "num_samples"):
                raise TypeError(
                    f"{type(self).__name__} takes an {name}, or a function of the trainer that "
                    f"returns one, got {made!r}"
                )
        return sampler, pruner


def _is_function(given: Any) -> bool:
    """Whether this is a function that makes a sampler or a pruner."""
    return callable(given) and not hasattr(given, "num_samples")
