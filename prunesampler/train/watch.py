"""Warnings about mistakes that spoil a pruned run without an error, each issued once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, MultiStepLR, SequentialLR

from prunesampler.base.checks import warn
from prunesampler.base.processes import current_group
from prunesampler.sampling.loaders import (
    batch_size_of,
    check_batches,
    sampler_of,
    smaller_than_batch,
)
from prunesampler.sampling.sampler import RUNS_AHEAD, InfluencePrunedSampler
from prunesampler.train.epochs import EpochsPlan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Watch:
    """Inspects a run at the end of each epoch, and warns about mistakes; it changes nothing.

    Args:
        sampler: Sampler of the run.
        accelerator: Accelerator of the run, whose loaders and schedulers are watched too, or None.

    Examples:
        >>> sampler = InfluencePrunedSampler(range(6))
        >>> watch = Watch(sampler)
        >>> sampler.restrict([0, 2, 5])
        >>> drawn = list(sampler)
        >>> watch.epoch_ended(0, EpochsPlan(warmup_epochs=1))  # nothing to warn of
    """

    def __init__(
        self, sampler: InfluencePrunedSampler, accelerator: Accelerator | None = None
    ) -> None:
        self._sampler, self._accelerator = sampler, accelerator
        self._seen = sampler.clock.begun  # number of passes that were checked
        self._loaders: list[Any] = []
        self._schedulers: list[tuple[Any, list[int]]] = []  # with their steps after each epoch
        self._said: set[str] = set()
        self._first = True  # the first epoch of a resumed run may have had no batch left

    def add(self, loaders: Iterable[Any], schedulers: Iterable[Any]) -> None:
        """Watch these too from now on; None and known ones are ignored."""
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
        """Check the batches of all loaders with our sampler, for this many kept samples."""
        for loader in self._loaders:
            if sampler_of(loader) is self._sampler:
                check_batches(model, loader, kept)
                self._said.add("batch")

    def epoch_ended(self, epoch: int, plan: EpochsPlan) -> None:
        """Warn about mistakes in the epoch that ended, if it was pruned.

        Only rank 0 checks, since the sampler is iterated there however samples are shared out.
        """
        if current_group().rank:
            return
        if self._accelerator is not None:  # private lists, which may be missing
            self.add(
                getattr(self._accelerator, "_dataloaders", ()),
                getattr(self._accelerator, "_schedulers", ()),
            )
        for scheduler, seen in self._schedulers:
            seen.append(ticks(scheduler) or 0)
        clock = self._sampler.clock
        if len(self._sampler.kept) < self._sampler.num_samples:
            self._check_passes(epoch, clock.passes_since(self._seen))
            for loader in self._loaders:
                self._check_loader(loader)
            for scheduler, seen in self._schedulers:
                self._check_schedule(scheduler, seen, epoch, plan)
        # A pass that still runs belongs to the next epoch: its loader runs ahead.
        self._seen = clock.begun - clock.running
        self._first = False

    def _check_passes(self, epoch: int, drawn: list[int]) -> None:
        clock = self._sampler.clock
        if not drawn and clock.running and not self._first:
            self._say("ahead", f"no pass over the sampler began in epoch {epoch}. {RUNS_AHEAD}")
        elif not drawn and not self._first:
            self._say(
                "sampler",
                f"nobody iterated the sampler in epoch {epoch}, so training ran on other samples than "
                "the kept ones: the loader has another sampler, or a framework put its own in place; "
                "build the loader with sampler= and let nothing replace it",
            )
        elif drawn and epoch not in drawn and (drawn[-1] < epoch or clock.told):
            # A later epoch's order is harmless: passes without training moved the epoch on.
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
        self, scheduler: Any, seen: list[int], epoch: int, plan: EpochsPlan
    ) -> None:
        length, taken = schedule_length(scheduler), seen[-1] - seen[-2] if len(seen) > 1 else 0
        if length is None or plan.epochs is None or taken <= 0:
            return
        growth = self._sampler.length(self._sampler.num_samples) / len(self._sampler)
        full = taken if taken == 1 else round(taken * growth)  # 1: stepped once per epoch
        coming = range(epoch + 1, plan.epochs)
        total = seen[-1] + sum(taken if plan.prunes(e) else full for e in coming)
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
    """Number of steps that a scheduler has made, prepared by accelerate or not, or None.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> ticks(torch.optim.lr_scheduler.StepLR(optimizer, 10))
        0
    """
    told = getattr(getattr(scheduler, "scheduler", scheduler), "last_epoch", None)
    return told if isinstance(told, int) else None


def schedule_length(scheduler: Any) -> int | None:
    """Number of steps until a learning-rate schedule ends, or None where no end is known.

    Examples:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> schedule_length(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50))
        50
    """
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
