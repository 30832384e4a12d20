"""The number of steps of a run, known beforehand."""

from __future__ import annotations

from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.selection import Selection
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.pruners import Pruner
from prunesampler.train.steps import optimiser_steps, planned_lengths


class PlansSteps:
    """What a callback knows of the length of its run. A base class of `prunesampler.PruningCallback`.

    Attributes:
        plan: plan of the epochs that run on all samples and on the kept ones.
        sampler: sampler of the training loader.
        pruner: pruner over the same samples.
        selection: the last selection in this process, or None.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> planned = PlansSteps()
        >>> planned.sampler, planned.plan = InfluencePrunedSampler(range(10)), EpochsPlan(warmup_epochs=2)
        >>> planned.pruner, planned.selection = InfluencePruner(range(10), budget=Budget(count=4)), None
        >>> planned.planned_steps(epochs=4, batch_size=5)
        8
    """

    plan: EpochsPlan
    sampler: InfluencePrunedSampler
    pruner: Pruner
    selection: Selection | None

    def planned_steps(
        self,
        *,
        epochs: int,
        batch_size: int,
        drop_last: bool = False,
        num_processes: int = 1,
        gradient_accumulation_steps: int = 1,
    ) -> int:
        """Number of optimiser steps of a whole run, for sizing a learning-rate schedule.

        With ``Budget(epsilon=)`` the number of pruned samples is known only after the selection.
        Before that, this warns and returns an upper bound; call it again in ``on_selection``.

        Args:
            epochs: Number of epochs of the whole run.
            batch_size: Batch size per process, as the loader has it.
            drop_last: Whether an epoch's last, smaller batch is left out, as the loader has it.
            num_processes: Number of processes that share out the batches, as accelerate does by
                default. With ``split_batches=True`` or a sampler with ``num_replicas`` leave it at 1.
                A scheduler that accelerate prepared makes ``num_processes`` steps per optimiser
                step, so multiply the result.
            gradient_accumulation_steps: Number of batches per optimiser step; an epoch's last
                batches make a step even if they are fewer.

        Raises:
            ValueError: For numbers below 1, or an epoch that would have no batch.
        """
        return optimiser_steps(
            self.planned_lengths(epochs),
            batch_size=batch_size,
            drop_last=drop_last,
            num_processes=num_processes,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

    def planned_lengths(self, epochs: int) -> list[int]:
        """Number of samples that each epoch of a whole run draws, on one rank of the sampler.

        Raises:
            ValueError: If ``epochs`` is below 1, or not the number that the callback was given.
        """
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        chosen = None if self.selection is None else len(self.selection.kept)
        return planned_lengths(self.plan.lasting(epochs), self.sampler, self.pruner.budget, chosen)

    def _lengths_from(self, epoch: int) -> tuple[int, ...]:
        """Number of samples of this epoch and of those after it, on all ranks; empty if the end is unknown."""
        if self.plan.epochs is None:
            return ()
        ranks = self.sampler.num_replicas
        return tuple(ranks * size for size in self.planned_lengths(self.plan.epochs)[epoch:])
