"""What silently spoils a pruned run: noticed at the end of its first pruned epoch, and said once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, SequentialLR

from prunesampler.base.checks import warn
from prunesampler.sampling.loaders import (
    batch_size_of,
    check_batches,
    sampler_of,
    smaller_than_batch,
)
from prunesampler.sampling.sampler import RUNS_AHEAD, InfluencePrunedSampler
from prunesampler.train.epochs import EpochsPlan


class Watch:
    """Looks at a run from outside, at the ends of its epochs, and changes nothing.

    Args:
        sampler: of the run.
    """

    def __init__(self, sampler: InfluencePrunedSampler) -> None:
        self._sampler = sampler
        self._loaders: list[Any] = []
        self._schedulers: list[tuple[Any, list[int]]] = []  # with their steps at epochs' ends
        self._said: set[str] = set()
        self._first = True  # the first epoch of a resumed run may have had no batch left

    def add(self, loaders: Iterable[Any], schedulers: Iterable[Any]) -> None:
        """Look at these as well, from now on; what is known already, or None, is skipped."""
        for new in loaders:
            if new is not None and all(new is not old for old in self._loaders):
                self._loaders.append(new)
        for new in schedulers:
            if (
                getattr(new, "t_in_epochs", True) is False
                and self._sampler.epoch_length == "shrink"
            ):
                self._say(
                    "updates",
                    f"the {type(new).__name__} places itself at epoch * len(loader) updates (timm's "
                    "sched_on_updates), which jumps when epochs get shorter; use "
                    'InfluencePrunedSampler(..., epoch_length="constant"), or a schedule in epochs',
                )
            if ticks(new) is not None and all(new is not old for old, _ in self._schedulers):
                self._schedulers.append((new, []))

    def check_batches(self, model: nn.Module, kept: int) -> None:
        """Warn of what the batches of loaders with our sampler would be with so many samples kept."""
        for loader in self._loaders:
            if sampler_of(loader) is self._sampler:
                check_batches(model, loader, kept)
                self._said.add("batch")

    def epoch_ended(self, epoch: int, schedule: EpochsPlan) -> None:
        """Warn of what is wrong with the epoch that ended, if it was a pruned one."""
        for scheduler, seen in self._schedulers:
            seen.append(ticks(scheduler) or 0)
        if len(self._sampler.kept) < self._sampler.num_samples:
            self._check_passes(epoch)
            for loader in self._loaders:
                self._check_loader(loader)
            for scheduler, seen in self._schedulers:
                self._check_schedule(scheduler, seen, epoch, schedule)
        began = list(self._sampler.passes)
        self._sampler.passes.clear()
        if self._sampler.running:  # the loader runs ahead: that pass is the next epoch's
            self._sampler.passes.extend(began[-1:])
        self._first = False

    def _check_passes(self, epoch: int) -> None:
        drawn = list(self._sampler.passes)
        if not drawn and self._sampler.running and not self._first:
            self._say("ahead", f"no pass over the sampler began in epoch {epoch}. {RUNS_AHEAD}")
        elif not drawn and not self._first:
            self._say(
                "sampler",
                f"nobody iterated the sampler in epoch {epoch}, so training ran on other samples than "
                "the kept ones: the loader has another sampler, or a framework put its own in place; "
                "build the loader with sampler= and let nothing replace it",
            )
        elif drawn and epoch not in drawn and (drawn[-1] < epoch or self._sampler.told):
            # Orders ahead of the epoch come of passes that train nothing, and are as good.
            passes = f" (the last of {len(drawn)} passes)" if len(drawn) > 1 else ""
            self._say(
                "order",
                f"epoch {epoch} ran in the order of epoch {drawn[-1]}{passes}: call "
                "loader.set_epoch(epoch) (accelerate) or sampler.set_epoch(epoch) before each epoch",
            )

    def _check_loader(self, loader: Any) -> None:
        kept, batch = len(self._sampler), batch_size_of(loader)
        if sampler_of(loader) is self._sampler and batch is not None and kept < batch:
            self._say("batch", smaller_than_batch(kept, batch))

    def _check_schedule(
        self, scheduler: Any, seen: list[int], epoch: int, schedule: EpochsPlan
    ) -> None:
        length, taken = schedule_length(scheduler), seen[-1] - seen[-2] if len(seen) > 1 else 0
        if length is None or schedule.epochs is None or taken <= 0:
            return
        growth = self._sampler.length(self._sampler.num_samples) / len(self._sampler)
        full = taken if taken == 1 else round(taken * growth)  # 1: stepped once per epoch
        coming = range(epoch + 1, schedule.epochs)
        total = seen[-1] + sum(taken if schedule.prunes(e) else full for e in coming)
        if length > 1.01 * total + 1:
            name = type(getattr(scheduler, "scheduler", scheduler)).__name__
            self._say(
                "schedule",
                f"the {name} is sized for {length} steps, this run makes {total}, so training will "
                "end at a learning rate that is too high; size it with pruning.planned_steps()",
            )

    def _say(self, what: str, message: str) -> None:
        if what not in self._said:
            self._said.add(what)
            warn(message)


def ticks(scheduler: Any) -> int | None:
    """How often a scheduler, prepared by accelerate or not, was stepped, if it tells."""
    told = getattr(getattr(scheduler, "scheduler", scheduler), "last_epoch", None)
    return told if isinstance(told, int) else None


def schedule_length(scheduler: Any) -> int | None:
    """Steps until a schedule of the learning rate ends, or None where it has no end or hides it."""
    scheduler = getattr(scheduler, "scheduler", scheduler)
    if isinstance(scheduler, SequentialLR):
        parts: list[LRScheduler] = scheduler._schedulers
        last = schedule_length(parts[-1])
        return None if last is None else int(scheduler._milestones[-1]) + last
    if isinstance(scheduler, MultiStepLR):
        return max(scheduler.milestones, default=None)
    if isinstance(scheduler, LambdaLR):  # as the schedules of transformers are made
        given = [getattr(part, "keywords", {}) for part in scheduler.lr_lambdas]
        return next((k["num_training_steps"] for k in given if "num_training_steps" in k), None)
    names = ("total_steps", "T_max", "total_iters")
    return next((int(getattr(scheduler, name)) for name in names if hasattr(scheduler, name)), None)
