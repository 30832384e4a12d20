"""One training run: its progress so far, and the work due before each epoch."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Literal, TypeVar

from torch import nn

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group, together
from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.train.epochs import Due, EpochsPlan
from prunesampler.train.pruners import Pruner
from prunesampler.train.redraws import Redraws
from prunesampler.train.watch import Watch

T = TypeVar("T")


class Run:
    """The progress of one training run, and the steps that a `PruningCallback` takes in it.

    Args:
        sampler: Sampler of the training loader.
        pruner: Pruner over the same samples.
        watch: Watch that checks the batches of pruned epochs in the trial.
        redraws: Source of further sets from the same scores, or None to measure for every set.
        on_error: Whether a failed selection, or a failed trial, ends the run (``"raise"``) or is
            reported in one warning each (``"continue"``).
        hold_scores: Whether the scores of a selection are held until `take_scores`.

    Attributes:
        selected: whether a selection was made.
        ended: last epoch whose end was seen, -1 before any.
        last_end: time at which it ended, in seconds, or None if that was not in this process.
        redraws: source of further sets, as it was given.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> sampler = InfluencePrunedSampler(data)
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> run = Run(sampler, pruner, Watch(sampler), None, "raise")
        >>> plan = EpochsPlan(warmup_epochs=1)
        >>> selection = run.do(run.due(plan, 1), plan, 1, torch.nn.Linear(4, 3))
        >>> len(sampler)
        40
    """

    def __init__(
        self,
        sampler: InfluencePrunedSampler,
        pruner: Pruner,
        watch: Watch,
        redraws: Redraws | None,
        on_error: Literal["raise", "continue"],
        *,
        hold_scores: bool = False,
    ) -> None:
        self._sampler, self._pruner, self._watch = sampler, pruner, watch
        self._on_error, self._hold_scores = on_error, hold_scores
        self._scores: Scores | None = None
        self.redraws = redraws
        self._failed = False  # whether a selection failed
        self._reason: str | None = None  # why the trial or a selection failed
        self.selected = False
        self.ended = -1
        self.last_end: float | None = None

    def due(self, plan: EpochsPlan, coming: int) -> Due:
        """The work to be done before this coming epoch."""
        chosen = self.selected or len(self._sampler.kept) < self._sampler.num_samples
        return plan.due(
            coming,
            missed=not chosen and not self._failed,
            first=self.last_end is None and not self.selected,
        )

    def do(self, due: Due, plan: EpochsPlan, coming: int, model: nn.Module) -> Selection | None:
        """Do what is due before this coming epoch; returns the selection, if there is one."""
        sampler, after, selection = self._sampler, f"after epoch {coming - 1}", None
        if due is Due.ALL_SAMPLES:
            sampler.reset()
        elif due is Due.TRIAL:
            self._attempt(
                partial(self._try, model),
                f"the trial measurement {after} failed, so the selection before epoch "
                f"{plan.warmup_epochs} is likely to fail too, and training would go on with all samples",
            )
        elif due is not Due.NOTHING:
            selection = self._attempt(
                partial(self._choose, coming, model, measure=due is Due.SELECTION),
                f"PRUNING FAILED {after}, and training goes on with {len(sampler.kept)} of "
                f"{sampler.num_samples} samples",
            )
            self._failed = self._failed or selection is None
        return selection

    def _heard(self, coming: int, model: nn.Module) -> Selection:
        """The pruner's choice; the scores that it measured on the way are held if they are asked for."""
        if not (self._hold_scores and isinstance(self._pruner, InfluencePruner)):
            return self._pruner.choose(coming, model)
        held: list[Scores] = []
        self._pruner.heard = held.append
        try:
            selection = self._pruner.choose(coming, model)
        finally:
            self._pruner.heard = None
        self._scores = held[-1] if held else None
        return selection

    def take_scores(self) -> Scores | None:
        """The scores of the last selection, once, where they are held: on rank 0, and if there are any."""
        held, self._scores = self._scores, None
        return held

    def end_epoch(self, epoch: int) -> None:
        """Note that everything due at the end of this epoch was done."""
        self.ended, self.last_end = epoch, time.perf_counter()

    def _attempt(self, work: Callable[[], T], failed: str) -> T | None:
        """The result of the work, or None if it fails and the run goes on after a warning."""
        try:
            return work()
        except Exception as error:
            if self._on_error == "raise":
                raise
            reason = f"{type(error).__name__}: {error}"
            if not self._failed:
                again = reason == self._reason
                warn(f"{failed}: {'the same error as in the trial' if again else reason}")
            self._reason = reason
            return None

    def _try(self, model: nn.Module) -> None:
        """Measure a batch on trial, and check the batches of pruned epochs."""
        self._pruner.check(model)
        if self._pruner.budget.epsilon is None:
            n = self._sampler.num_samples
            self._watch.check_batches(model, n - self._pruner.budget.count_of(n))

    def _choose(self, coming: int, model: nn.Module, *, measure: bool) -> Selection:
        """Measure and select, or only redraw, and restrict the sampler on all ranks."""
        group, sampler = current_group(), self._sampler
        group.meet("on_epoch_end")
        if not self.selected:
            self._pruner.check_order(sampler.dataset)
        if self.redraws is not None:
            selection = self.redraws.draw(model, sampler.kept, measure=measure)
            self._scores = self.redraws.scores if self._hold_scores else None
        else:
            selection = self._heard(coming, model)
        together(group, partial(sampler.restrict, selection))
        state = sampler.state_dict()
        group.check_equal("the samplers", repr((state["n"], state["seed"], state["kept"])).encode())
        self.selected = True
        return selection
