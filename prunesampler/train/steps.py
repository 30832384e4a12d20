"""How many samples the epochs of a run draw, and how many optimiser steps that makes."""

from __future__ import annotations

from collections.abc import Iterable

from prunesampler.base.checks import warn
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.solve.budget import Budget
from prunesampler.solve.constraints import Constraints
from prunesampler.train.epochs import EpochsPlan


def planned_lengths(
    schedule: EpochsPlan,
    sampler: InfluencePrunedSampler,
    budget: Budget,
    chosen: int | None,
    constraints: Constraints | None = None,
) -> list[int]:
    """Samples that each epoch draws, on one rank of the sampler.

    With an epsilon, or with groups of samples that go together, the number is known only after the
    selection: before, this is an upper bound, and warns.

    Args:
        schedule: of a run of known length.
        sampler: of the run.
        budget: of the run.
        chosen: samples kept by the last selection, or None before it.
        constraints: of the run, or None.
    """
    full = sampler.num_samples
    kept, reason = _most_kept(budget, constraints, full)
    if reason and chosen is not None:
        kept = chosen
    elif reason and len(sampler.kept) < full:  # a run that resumed after its selection
        kept = len(sampler.kept)
    elif reason:
        warn(
            f"with {reason} the kept samples are known only after the selection; planned_steps is "
            "an upper bound, call it again in on_selection"
        )
    epochs = range(schedule.epochs or 0)
    return [sampler.length(kept if schedule.prunes(epoch) else full) for epoch in epochs]


def _most_kept(
    budget: Budget, constraints: Constraints | None, num_samples: int
) -> tuple[int, str | None]:
    """Samples that a selection keeps at most, and what makes it uncertain, or None if exact.

    Groups are filled in until the next does not fit, so that less than the largest is missing; but
    floors per class may stop it earlier.
    """
    if budget.epsilon is not None:
        return num_samples, f"Budget(epsilon={budget.epsilon})"
    exact = num_samples - budget.count_of(num_samples)
    largest = 1
    if constraints is not None:
        largest = int(constraints.unit_of(num_samples).bincount().max())
    if largest == 1:
        return exact, None
    reason = f"groups of up to {largest} samples"
    if budget.proportional or budget.min_per_class > 1:
        return num_samples, f"{reason} and floors per class"
    return min(num_samples, exact + largest - 1), reason


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
