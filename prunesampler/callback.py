"""When to prune: the one object a training loop talks to."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from tqdm.auto import tqdm

from prunesampler.distributed import current_group, together
from prunesampler.pruner import InfluencePruner
from prunesampler.report import summary
from prunesampler.rotation import older
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.scores import Scores
from prunesampler.selection import Selection, complement

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("prunesampler")
STATE_VERSION = 1


class PruningCallback:
    """Prunes the sampler after the warm-up, and again or back to all samples if asked to.

    Call `on_epoch_end` at the end of every epoch, on every process. What happens depends on the
    epoch's number, so a resumed run needs the sampler's state and, with ``redraw_every``, the
    callback's. If a run is past its warm-up and nothing is pruned yet, the first call selects.

    With ``redraw_every`` the kept set changes between two measurements: another set of the same
    budget, from the scores at hand, and the samples left out longest come back first. A sample is
    kept again within ``ceil(1 / k) + 1`` draws, where k is the kept share of the samples that are
    free to go (see `prunesampler.rotation`). For
    networks trained from scratch this is the mode to use: every sample is still seen.

    Under accelerate call ``loader.set_epoch(epoch)`` before each epoch of a resumed run: a new
    prepared loader counts its passes from 0 and would repeat the order of the first ones.

    Args:
        sampler: of the training loader.
        pruner: over the same samples, without augmentation.
        warmup_epochs: epochs on all samples before the first selection, at least 1.
        refresh_every: measure and select again every so many epochs after the first time.
        redraw_every: draw another set every so many epochs after the first time, without
            measuring. The scores stay in memory on rank 0.
        final_full_epochs: train on all samples in the last epochs; needs ``epochs``.
        epochs: epochs of the run. Nothing is selected at its end.
        accelerator: of the run, if there is one. The sampler is registered with it, so that
            ``save_state`` and ``load_state`` keep the pruned set, and with ``redraw_every`` this
            callback as well.
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
        redraw_every: int | None = None,
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
        for name, every in (("refresh_every", refresh_every), ("redraw_every", redraw_every)):
            if every is not None and every < 1:
                raise ValueError(f"{name} must be at least 1 or None, got {every}")
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
            if redraw_every is not None:
                accelerator.register_for_checkpointing(self)
        self.sampler, self.pruner = sampler, pruner
        self.selection: Selection | None = None
        self._warmup, self._refresh, self._redraw = warmup_epochs, refresh_every, redraw_every
        self._scores: Scores | None = None
        self._measured = False
        self._ages = torch.zeros(sampler.num_samples, dtype=torch.int64)
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
        elif self._selects(epoch + 1) or self._redraws(epoch + 1):
            group, selection = current_group(), self._choose(epoch + 1, model)
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

    def _choose(self, epoch: int, model: nn.Module) -> Selection:
        """The selection for this coming epoch, measuring if it is time or nothing is measured."""
        if self._redraw is None:
            return self.pruner.select(model)
        anew = self._selects(epoch) or not self._measured
        current_group().check_equal(
            "the callbacks", repr(anew).encode(), self._ages.numpy().tobytes()
        )
        if anew:
            self._scores = self.pruner.measure(model)
        n, kept = self.sampler.num_samples, self.sampler.kept
        if not self._measured and len(kept) < n:  # resumed without this callback's state
            self._ages = older(self._ages, complement(kept, n))
        self._measured = True
        selection = self.pruner.redraw(self._scores, self._ages, certify=anew)
        self._ages = older(self._ages, selection.pruned)
        return selection

    def state_dict(self) -> dict[str, Any]:
        """What a redraw needs: for how many draws each sample was left out or kept, and the scores.

        The scores are the measurements, ``4 n (2 C + D + 4)`` bytes, on rank 0 only. Without
        ``redraw_every`` there is nothing to save.
        """
        return {
            "version": STATE_VERSION,
            "n": self.sampler.num_samples,
            "ages": self._ages,
            "scores": None if self._scores is None else self._scores.state_dict(),
            "measured": self._measured,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: when the state is of another version or dataset size, or not whole.
        """
        missing = {"version", "n", "ages", "scores", "measured"} - set(state)
        if missing:
            raise ValueError(f"not a state of PruningCallback: {sorted(missing)} missing")
        if state["version"] != STATE_VERSION:
            raise ValueError(
                f"the state has version {state['version']!r}, this release reads {STATE_VERSION}"
            )
        n, ages = self.sampler.num_samples, state["ages"]
        fits = isinstance(ages, torch.Tensor) and ages.dtype == torch.int64 and ages.shape == (n,)
        if state["n"] != n or not fits:
            raise ValueError(
                f"the state is of a dataset of {state['n']} samples, this one has {n}; resume with "
                "the dataset of the checkpoint"
            )
        held = state["scores"]
        if state["measured"] and held is None and current_group().rank == 0:
            raise ValueError("the state was saved on another rank than 0; load the one of rank 0")
        here = held is not None and current_group().rank == 0
        scores = self.pruner.scores_from(held) if here else None
        self._scores, self._measured = scores, bool(state["measured"])
        self._ages = ages.to("cpu", torch.int64)

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

    def _redraws(self, epoch: int) -> bool:
        """Whether a redraw is due before this coming epoch."""
        since = epoch - self._warmup
        if self._redraw is None or (self._epochs is not None and epoch >= self._epochs):
            return False
        return since >= 0 and since % self._redraw == 0

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
