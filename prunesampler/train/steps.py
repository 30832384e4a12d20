"""The number of samples in each epoch of a run, and of optimiser steps in all."""

from __future__ import annotations

from collections.abc import Iterable

from prunesampler.base.checks import warn
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.solve.budget import Budget
from prunesampler.train.epochs import EpochsPlan


def planned_lengths(
    plan: EpochsPlan, sampler: InfluencePrunedSampler, budget: Budget, chosen: int | None
) -> list[int]:
    """Number of samples that each epoch draws on one rank of the sampler.

    With a fraction or a count it is exact. With an epsilon it is known only after the selection;
    before that, this warns and returns an upper bound.

    Args:
        plan: Plan of a run of known length.
        sampler: Sampler of the run.
        budget: Budget of the run.
        chosen: Number of samples kept by the last selection, or None before it.

    Examples:
        >>> plan, sampler = EpochsPlan(warmup_epochs=2, epochs=4), InfluencePrunedSampler(range(10))
        >>> planned_lengths(plan, sampler, Budget(count=4), None)
        [10, 10, 6, 6]
    """
    full = sampler.num_samples
    if budget.epsilon is None:
        kept = full - budget.count_of(full)
    elif chosen is not None:
        kept = chosen
    else:
        kept = len(sampler.kept)  # fewer than all in a run that resumed after its selection
        if kept == full:
            warn(
                f"with Budget(epsilon={budget.epsilon}) the kept samples are known only after the "
                "selection; planned_steps is an upper bound, call it again in on_selection"
            )
    epochs = range(plan.epochs or 0)
    return [sampler.length(kept if plan.prunes(epoch) else full) for epoch in epochs]


def optimiser_steps(
    lengths: Iterable[int],
    *,
    batch_size: int,
    drop_last: bool,
    num_processes: int,
    gradient_accumulation_steps: int,
) -> int:
    """Number of optimiser steps of epochs that draw this many samples each.

    The other arguments are those of `prunesampler.PruningCallback.planned_steps`.

    Raises:
        ValueError: For numbers below 1, or an epoch without a batch.

    Examples:
        >>> options = {"drop_last": False, "num_processes": 1, "gradient_accumulation_steps": 1}
        >>> optimiser_steps([10, 6], batch_size=4, **options)
        5
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
