"""When to prune: the one object a training loop talks to."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from torch import nn
from tqdm.auto import tqdm

from prunesampler.distributed import current_group, together
from prunesampler.pruner import InfluencePruner
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.selection import Selection

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("prunesampler")


class PruningCallback:
    """Prunes the sampler after the warm-up, and again or back to all samples if asked to.

    Call `on_epoch_end` at the end of every epoch, on every process. What happens depends on the
    epoch's number, so a resumed run needs no state of the callback, only the sampler's. If a run is
    past its warm-up and nothing is pruned yet, the first call selects.

    Under accelerate call ``loader.set_epoch(epoch)`` before each epoch of a resumed run: a new
    prepared loader counts its passes from 0 and would repeat the order of the first ones.

    Args:
        sampler: of the training loader.
        pruner: over the same samples, without augmentation.
        warmup_epochs: epochs on all samples before the first selection, at least 1.
        refresh_every: measure and select again every so many epochs after the first time.
        final_full_epochs: train on all samples in the last epochs; needs ``epochs``.
        epochs: epochs of the run. Nothing is selected at its end.
        accelerator: of the run, if there is one. The sampler is registered with it, so that
            ``save_state`` and ``load_state`` keep the pruned set.
        on_selection: called with every selection, after the sampler was restricted.

    Attributes:
        selection: the last selection in this process, or None.

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
        final_full_epochs: int = 0,
        epochs: int | None = None,
        accelerator: Accelerator | None = None,
        on_selection: Callable[[Selection], None] | None = None,
    ) -> None:
        if pruner.num_samples != sampler.num_samples:
            raise ValueError(
                f"score_dataset has {pruner.num_samples} samples, the sampler's dataset "
                f"{sampler.num_samples}; score the training set itself, without augmentation"
            )
        if warmup_epochs < 1:
            raise ValueError(
                f"warmup_epochs must be at least 1, got {warmup_epochs}: influence is measured on a "
                "trained model"
            )
        if refresh_every is not None and refresh_every < 1:
            raise ValueError(f"refresh_every must be at least 1 or None, got {refresh_every}")
        if final_full_epochs < 0 or (final_full_epochs and epochs is None):
            raise ValueError(
                f"final_full_epochs={final_full_epochs} with epochs={epochs}: it must be zero or "
                "more, and needs to know the number of epochs"
            )
        if epochs is not None and warmup_epochs + final_full_epochs > epochs:
            raise ValueError(
                f"warmup_epochs={warmup_epochs} and final_full_epochs={final_full_epochs} are more "
                f"than epochs={epochs}; shorten them"
            )
        sampler.check_size(sampler.num_samples - pruner.budget.size(sampler.num_samples))
        if accelerator is not None:
            if accelerator.num_processes != current_group().size:
                raise ValueError(
                    f"the accelerator has {accelerator.num_processes} processes, torch.distributed "
                    f"{current_group().size}; create the Accelerator before the callback"
                )
            accelerator.register_for_checkpointing(sampler)
        self.sampler, self.pruner = sampler, pruner
        self.selection: Selection | None = None
        self._warmup, self._refresh = warmup_epochs, refresh_every
        self._final_full, self._epochs = final_full_epochs, epochs
        self._on_selection = on_selection
        self._last_end: float | None = None

    def on_epoch_end(self, epoch: int, model: nn.Module) -> Selection | None:
        """Select and restrict, or reset, when the time has come.

        Args:
            epoch: the epoch that ended, counted from 0.
            model: as it is trained, wrapped or not.

        Returns:
            The new selection, if there is one.

        Raises:
            RuntimeError: when the sampler's seed, size or kept set differs between ranks.
        """
        now = time.perf_counter()
        epoch_seconds = None if self._last_end is None else now - self._last_end
        selection = None
        if self._ends_pruning(epoch + 1, self._epochs):
            self.sampler.reset()
        elif self._selects(epoch + 1):
            group, selection = current_group(), self.pruner.select(model)
            together(group, partial(self.sampler.restrict, selection))
            state = self.sampler.state_dict()
            group.check_equal(
                "the samplers", repr((state["n"], state["seed"])).encode(),
                state["kept"].numpy().tobytes(),
            )  # fmt: skip
            self.selection = selection
            self._report(epoch, selection, time.perf_counter() - now, epoch_seconds)
            if self._on_selection is not None:
                self._on_selection(selection)
        self._last_end = time.perf_counter()
        return selection

    def planned_steps(
        self,
        *,
        epochs: int,
        batch_size: int,
        drop_last: bool = False,
        num_processes: int = 1,
        gradient_accumulation_steps: int = 1,
    ) -> int:
        """Optimiser steps of a run of so many epochs, for sizing a schedule.

        With ``Budget(epsilon=)`` the number of pruned samples is known only after the selection.
        Before, this returns the steps without pruning, which is an upper bound, and warns; call it
        again in ``on_selection``.

        Args:
            epochs: of the whole run.
            batch_size: per process, as the loader has it.
            drop_last: as the loader has it.
            num_processes: that share out the batches, as accelerate does by default. With
                ``split_batches=True`` or a sampler with ``num_replicas`` leave it at 1. A scheduler
                that accelerate prepared steps ``num_processes`` times per optimiser step: multiply.
            gradient_accumulation_steps: batches per optimiser step; an epoch's rest makes a step.

        Raises:
            ValueError: for numbers below 1, or an epoch that would have no batch.
        """
        numbers = (epochs, batch_size, num_processes, gradient_accumulation_steps)
        if min(numbers) < 1:
            raise ValueError(
                "epochs, batch_size, num_processes and gradient_accumulation_steps must be at "
                f"least 1, got {numbers}"
            )
        if self._epochs not in (None, epochs):
            raise ValueError(
                f"epochs={epochs}, but the callback was made for epochs={self._epochs}"
            )
        kept, full = self._planned_kept(), self.sampler.num_samples
        total = 0
        for epoch in range(epochs):
            pruned = epoch >= self._warmup and not self._ends_pruning(epoch, epochs)
            length = self.sampler.length(kept if pruned else full)
            batches = length // batch_size if drop_last else -(-length // batch_size)
            batches = batches // num_processes if drop_last else -(-batches // num_processes)
            if batches == 0:
                raise ValueError(
                    f"epoch {epoch} would have no batch: {length} samples in batches of "
                    f"{batch_size} on {num_processes} processes with drop_last=True; prune less or "
                    "use a smaller batch"
                )
            total += -(-batches // gradient_accumulation_steps)
        return total

    def _planned_kept(self) -> int:
        """Samples kept while pruned, known or bounded."""
        n, budget = self.sampler.num_samples, self.pruner.budget
        if budget.epsilon is None:
            return n - budget.size(n)
        if self.selection is not None:
            return n - len(self.selection.pruned)
        if len(self.sampler.kept) < n:
            return len(self.sampler.kept)
        warnings.warn(
            f"with Budget(epsilon={budget.epsilon}) the kept samples are known only after the "
            "selection; planned_steps is an upper bound, call it again in on_selection",
            stacklevel=3,
        )
        return n

    def _ends_pruning(self, epoch: int, epochs: int | None) -> bool:
        """Whether this coming epoch is one of the last, on all samples."""
        return bool(self._final_full) and epochs is not None and epoch >= epochs - self._final_full

    def _selects(self, epoch: int) -> bool:
        """Whether a selection is due before this coming epoch."""
        since = epoch - self._warmup
        if since < 0 or (self._epochs is not None and epoch >= self._epochs):
            return False
        # The first time may lie before the first call: the callback joined a run late.
        missed = self.selection is None and len(self.sampler.kept) == self.sampler.num_samples
        return missed or since == 0 or (self._refresh is not None and since % self._refresh == 0)

    def _report(
        self, epoch: int, selection: Selection, seconds: float, epoch_seconds: float | None
    ) -> None:
        """One line on rank 0: to the terminal beside the progress bars, else to the log."""
        if current_group().rank:
            return
        line = summary(epoch, selection, seconds, epoch_seconds)
        if self.pruner.progress:
            tqdm.write(line)
        else:
            logger.info(line)


def summary(epoch: int, selection: Selection, seconds: float, epoch_seconds: float | None) -> str:
    """The line that tells of a selection; seconds are of selecting, and of the epoch before it."""
    kept = selection.num_samples - len(selection.pruned)
    facts = selection.metadata
    scoring, solving = facts["scoring_seconds"], facts["solving_seconds"]
    ratio = "" if not epoch_seconds else f" = {seconds / epoch_seconds:.2f} of the last epoch"
    bound = "" if selection.bound is None else f", bound if convex {selection.bound:.3g}"
    return (
        f"prunesampler: after epoch {epoch} measured {selection.num_samples} samples, kept {kept} "
        f"({kept / selection.num_samples:.1%}); predicted shift ({facts['curvature']}) "
        f"{selection.shift:.3g} first order, {selection.newton_shift:.3g} Newton "
        f"(random set {facts['random_shift']:.3g}){bound}; "
        f"{seconds:.1f} s (scoring {scoring:.1f}, solving {solving:.1f}){ratio}"
    )
