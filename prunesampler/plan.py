"""How many samples the epochs of a run draw, and how many optimiser steps that makes."""

from __future__ import annotations

from collections.abc import Iterable

from prunesampler.budget import Budget
from prunesampler.checks import warn
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.schedule import Schedule


def planned_lengths(
    schedule: Schedule, sampler: InfluencePrunedSampler, budget: Budget, chosen: int | None
) -> list[int]:
    """Samples that each epoch draws, on one rank of the sampler.

    Args:
        schedule: of a run of known length.
        sampler: of the run.
        budget: of the run. With an epsilon the number is known only after the selection: before,
            this is an upper bound, and warns.
        chosen: samples kept by the last selection, or None before it.
    """
    full = sampler.num_samples
    if budget.epsilon is None:
        kept = full - budget.size(full)
    elif chosen is not None or len(sampler.kept) < full:
        kept = len(sampler.kept) if chosen is None else chosen
    else:
        kept = full
        warn(
            f"with Budget(epsilon={budget.epsilon}) the kept samples are known only after the "
            "selection; planned_steps is an upper bound, call it again in on_selection"
        )
    epochs = range(schedule.epochs or 0)
    return [sampler.length(kept if schedule.prunes(epoch) else full) for epoch in epochs]


def optimiser_steps(
    lengths: Iterable[int],
    *,
    batch_size: int,
    drop_last: bool,
    num_processes: int,
    gradient_accumulation_steps: int,
) -> int:
    """Optimiser steps of epochs with so many samples each.

    Args:
        lengths: samples of each epoch.
        batch_size: per process.
        drop_last: whether an epoch's last, smaller batch is left out.
        num_processes: that share out the batches.
        gradient_accumulation_steps: batches per step; an epoch's rest makes a step.

    Raises:
        ValueError: for numbers below 1, or an epoch without a batch.
    """
    numbers = (batch_size, num_processes, gradient_accumulation_steps)
    if min(numbers) < 1:
        raise ValueError(
            "batch_size, num_processes and gradient_accumulation_steps must be at least 1, got "
            f"{numbers}"
        )
    total = 0
    for epoch, length in enumerate(lengths):
        batches = length
        for size in (batch_size, num_processes):
            batches = batches // size if drop_last else -(-batches // size)
        if batches == 0:
            raise ValueError(
                f"epoch {epoch} would have no batch: {length} samples in batches of {batch_size} on "
                f"{num_processes} processes with drop_last=True; prune less or use a smaller batch"
            )
        total += -(-batches // gradient_accumulation_steps)
    return total
