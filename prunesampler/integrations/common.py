"""What the callbacks of all frameworks share."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.selection import Selection
from prunesampler.train.callback import PruningCallback
from prunesampler.train.epochs import EpochsPlan


def require(packages: tuple[str, ...], minimum: str, extra: str) -> None:
    """Check that one of these packages is installed, and new enough, if only as a candidate.

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


def _numbers(text: str) -> tuple[float, float]:
    """Major and minor of a version, without what marks a candidate; infinite where there are none."""
    found = re.match(r"\D*(\d+)(?:\.(\d+))?", text)
    if found is None:  # a build of somebody's own, and no reason to refuse it
        return (math.inf, math.inf)
    return (int(found[1]), int(found[2] or 0))


class HoldsPruning:
    """Makes the `prunesampler.PruningCallback` that a framework's callback drives.

    ``sampler`` and ``pruner`` may be functions of the trainer, for data that the trainer itself
    makes. They are called once in a run, when they are first needed.

    Args:
        sampler: of the training loader, or a function of the trainer that returns it. The framework
            shares out the batches: leave ``num_replicas`` at 1.
        pruner: over the same samples, without augmentation, or a function of the trainer that
            returns it.
        warmup_epochs: epochs on all samples before the first selection, at least 1.
        refresh_every: measure and select again every so many epochs after the first time.
        redraw_every: draw another set every so many epochs after the first time, without measuring.
        final_full_epochs: train on all samples in the last epochs.
        on_selection: called with every selection, after the sampler was restricted.
        scores_dir: with ``redraw_every``, a folder for what was measured, which every checkpoint holds
            otherwise.
        on_error: what a selection that fails does: ``"raise"`` ends the run, ``"continue"`` warns
            and goes on with the samples that were kept before.

    Raises:
        ValueError: for numbers out of range, or a pruner over another number of samples.
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
    ) -> None:
        if on_error not in ("raise", "continue"):
            raise ValueError(f"on_error must be 'raise' or 'continue', got {on_error!r}")
        self._given: tuple[Any, Any] = (sampler, pruner)
        self._make = partial(
            PruningCallback,
            warmup_epochs=warmup_epochs,
            refresh_every=refresh_every,
            redraw_every=redraw_every,
            on_selection=on_selection,
            scores_dir=scores_dir,
            on_error=on_error,
        )
        self._schedule = EpochsPlan(warmup_epochs, refresh_every, redraw_every, final_full_epochs)
        self._planned = self._schedule  # the same, once the length of the run is known
        self._trainer: Any = None  # once it is known
        self._log: Callable[[dict[str, float], int], Any] | None = None
        self._held: PruningCallback | None = None
        self._before: Selection | None = None  # the last selection of a run that goes on
        self._waiting: Mapping[str, Any] | None = None  # a state, until there is what it is of
        self._late = _is_function(sampler) or _is_function(pruner)
        if not self._late:
            self._hold()

    @property
    def pruning(self) -> PruningCallback:
        """The callback that is driven.

        Raises:
            RuntimeError: when sampler or pruner are functions of a trainer that is not known yet.
        """
        return self._held or self._hold()

    @property
    def sampler(self) -> InfluencePrunedSampler:
        """Of the training loader."""
        return self.pruning.sampler

    @property
    def selection(self) -> Selection | None:
        """The last selection in this process, or None."""
        return None if self._held is None else self._held.selection

    def meet(self, trainer: Any) -> None:
        """Learn whose run it is: what functions of the trainer are called with."""
        self._trainer = trainer

    def expect_epochs(self, epochs: int | None) -> None:
        """Learn from the framework how long the run is, or that it does not know."""
        self._planned = self._schedule if epochs is None else self._schedule.lasting(epochs)
        if self._held is not None:
            self._held.plan = self._planned

    def log_to(self, log: Callable[[dict[str, float], int], Any]) -> None:
        """Give the figures of every selection, and the step, to this function."""
        self._log = log
        if self._held is not None:
            self._held.log = log

    def state_dict(self) -> dict[str, Any]:
        """See `prunesampler.PruningCallback.state_dict`; empty before there is any data."""
        if self._held is None:
            return dict(self._waiting or {})
        return self._held.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See `prunesampler.PruningCallback.load_state_dict`; what is to come is loaded later."""
        if self._held is None and self._trainer is None:
            self._waiting = state_dict
        else:
            self.pruning.load_state_dict(state_dict)

    def begin_run(self, *, anew: bool) -> None:
        """Forget an earlier run or go on from it, and call functions of the trainer again.

        A trainer that makes its data at the beginning of a run makes other objects each time.

        Args:
            anew: whether the run begins with its first epoch.
        """
        held = self._held
        if held is None:
            return
        if anew:
            held.reset()
        held.sampler.called()  # it will be: no need to wait for it
        if self._late:
            self._held, self._waiting = None, None if anew else held.state_dict()
            self._before = None if anew else held.selection

    def _hold(self) -> PruningCallback:
        """Make the callback, and give it what came before there was one."""
        made = self._make(*self._objects())
        made.plan, made.log, made.managed = self._planned, self._log, True
        made.selection = self._before
        if self._trainer is not None:
            made.sampler.called()  # it will be: no need to wait for it
        if self._waiting is not None:
            made.load_state_dict(self._waiting)
        self._held, self._waiting = made, None
        return made

    def _objects(self) -> tuple[Any, Any]:
        """Sampler and pruner, from the functions that make them if need be.

        Raises:
            RuntimeError: when the trainer that they are functions of is not known yet.
            TypeError: when one is no such thing.
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
    """Whether this makes a sampler or a pruner, and is none itself."""
    return callable(given) and not hasattr(given, "num_samples")
