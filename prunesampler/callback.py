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

from prunesampler.checks import check_state
from prunesampler.distributed import current_group, together
from prunesampler.pruner import InfluencePruner
from prunesampler.report import figures, summary
from prunesampler.rotation import older
from prunesampler.sampler import InfluencePrunedSampler
from prunesampler.schedule import Schedule, optimiser_steps
from prunesampler.scores import Scores
from prunesampler.selection import Selection, complement
from prunesampler.watch import Watch, check_same_labels

if TYPE_CHECKING:
    from accelerate import Accelerator

logger = logging.getLogger("prunesampler")
STATE_VERSION = 1
STATE_KEYS = {"version", "rank", "sampler", "epoch", "selected", "ages", "scores"}


class PruningCallback:
    """Prunes the sampler after the warm-up, and again or back to all samples if asked to.

    Call `on_epoch_end` at the end of every epoch, on every process. Its state holds the sampler's:
    save `state_dict` with the model and the optimizer, and a resumed run goes on as if it had not
    stopped. If a run is past its warm-up and nothing was selected yet, the first call selects.

    With ``redraw_every`` the kept set changes between two measurements: another set of the same
    budget, from the scores at hand, and the samples left out longest come back first. A sample is
    kept again within ``ceil(1 / k) + 1`` draws, where k is the kept share of the samples that are
    free to go (see `prunesampler.rotation`). For
    networks trained from scratch this is the mode to use: every sample is still seen.

    At the end of the first pruned epoch it warns, once, when nobody iterated the sampler, when an
    epoch's order was that of another (a resumed run without ``set_epoch``), and of what `watch` sees.

    Args:
        sampler: of the training loader.
        pruner: over the same samples, without augmentation.
        warmup_epochs: epochs on all samples before the first selection, at least 1.
        refresh_every: measure and select again every so many epochs after the first time.
        redraw_every: draw another set every so many epochs after the first time, without
            measuring. The scores stay in memory on rank 0.
        final_full_epochs: train on all samples in the last epochs; needs ``epochs``.
        epochs: epochs of the run. Nothing is selected at its end.
        accelerator: of the run, if there is one: ``save_state`` and ``load_state`` then keep this
            callback's state, its trackers get the shift, the kept samples and the seconds of every
            selection, and its loaders and schedulers are watched.
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
        self.schedule = Schedule(
            warmup_epochs, refresh_every, redraw_every, final_full_epochs, epochs
        )
        sampler.check_size(sampler.num_samples - pruner.budget.size(sampler.num_samples))
        if accelerator is not None:
            if accelerator.num_processes != current_group().size:
                raise ValueError(
                    f"the accelerator has {accelerator.num_processes} processes, torch.distributed "
                    f"{current_group().size}; create the Accelerator before the callback"
                )
            accelerator.register_for_checkpointing(self)
        self.sampler, self.pruner = sampler, pruner
        self.selection: Selection | None = None
        self._accelerator, self._on_selection = accelerator, on_selection
        self._watch = Watch(sampler)
        self._selected = False
        self._scores: Scores | None = None
        self._ages = torch.zeros(sampler.num_samples, dtype=torch.int64)
        self._ended = -1  # the last epoch whose end was seen
        self._last_end: float | None = None

    def on_epoch_end(
        self, epoch: int, model: nn.Module, *, step: int | None = None
    ) -> Selection | None:
        """Select and restrict, or reset, when the time has come.

        Args:
            epoch: the epoch that ended, counted from 0.
            model: as it is trained, wrapped or not.
            step: at which trackers put the figures; default: the epoch. Give the optimiser steps so
                far to trackers that want steps to rise.

        Returns:
            The new selection, if there is one.

        Raises:
            RuntimeError: when the sampler's seed, size or kept set differs between ranks.
        """
        now = time.perf_counter()
        epoch_seconds = None if self._last_end is None else now - self._last_end
        coming, selection = epoch + 1, None
        self._look(epoch)
        if self.schedule.ends_pruning(coming):
            self.sampler.reset()
        elif not self.schedule.over(coming) and (
            self._selects(coming) or self.schedule.redraws(coming)
        ):
            group, selection = current_group(), self._choose(coming, model)
            together(group, partial(self.sampler.restrict, selection))
            state = self.sampler.state_dict()
            group.check_equal(
                "the samplers", repr((state["n"], state["seed"])).encode(),
                state["kept"].numpy().tobytes(),
            )  # fmt: skip
            self.selection, self._selected = selection, True
            seconds = time.perf_counter() - now
            self._report(epoch, selection, seconds, epoch_seconds)
            if self._accelerator is not None:
                numbers = figures(selection, seconds)
                self._accelerator.log(numbers, step=epoch if step is None else step)
            if self._on_selection is not None:
                self._on_selection(selection)
        self._ended, self._last_end = epoch, time.perf_counter()
        return selection

    def catch_up(self, epoch: int, model: nn.Module) -> Selection | None:
        """Do what was due before this coming epoch, if a checkpoint was saved before it was done.

        Frameworks save between an epoch's last batch and its end; their integrations call this when
        a run resumes.

        Args:
            epoch: the first epoch of the resumed run, counted from 0.
            model: as it was restored.
        """
        return self.on_epoch_end(epoch - 1, model) if self._ended < epoch - 1 else None

    def watch(self, *, loader: Any = None, scheduler: Any = None) -> None:
        """Warn at the end of the first pruned epoch of what these would spoil without a word.

        That is: a batch larger than the kept set, and a schedule of the learning rate that is longer
        than the run, where ``epochs`` is known. accelerate's, and those of the integrations, are
        watched without asking.

        Args:
            loader: of the training, or None.
            scheduler: of the learning rate, as in ``torch.optim.lr_scheduler``, or None.
        """
        self._watch.add(
            [] if loader is None else [loader], [] if scheduler is None else [scheduler]
        )

    def _look(self, epoch: int) -> None:
        """Let the watch see the epoch that ended; on rank 0, which always iterates the sampler."""
        if current_group().rank:
            return
        if self._accelerator is not None:  # what it prepared is not public; without it: no warning
            self._watch.add(
                getattr(self._accelerator, "_dataloaders", ()),
                getattr(self._accelerator, "_schedulers", ()),
            )
        if epoch > self._ended:  # not when it catches up
            self._watch.epoch_ended(epoch, self.schedule)

    def _selects(self, epoch: int) -> bool:
        """Whether a selection is due before this coming epoch, or was and has been missed."""
        return self.schedule.selects(epoch) or (
            self.schedule.prunes(epoch)
            and not self._selected
            and len(self.sampler.kept) == self.sampler.num_samples
        )

    def _choose(self, epoch: int, model: nn.Module) -> Selection:
        """The selection for this coming epoch, measuring if it is time or nothing is measured."""
        group = current_group()
        if not self._selected:
            data = (self.sampler.dataset, self.pruner.dataset)
            together(group, lambda: None if group.rank else check_same_labels(*data))
        if self.schedule.redraw_every is None:
            return self.pruner.select(model)
        measured = group.broadcast_bytes(bytes([self._scores is not None])) == b"\x01"
        anew = self._selects(epoch) or not measured
        group.check_equal("the callbacks", repr(anew).encode(), self._ages.numpy().tobytes())
        if anew:
            self._scores = self.pruner.measure(model)
        n, kept = self.sampler.num_samples, self.sampler.kept
        if not measured and len(kept) < n:  # resumed with the sampler's state alone
            self._ages = older(self._ages, complement(kept, n))
        selection = self.pruner.redraw(self._scores, self._ages, certify=anew)
        self._ages = older(self._ages, selection.pruned)
        return selection

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: the sampler's state, and what a redraw needs.

        That is for how many draws each sample was left out or kept, and the measurements: on rank 0
        ``4 n (2 C + D + 4)`` bytes, with ``redraw_every`` only. Save rank 0's.
        """
        redraws = self.schedule.redraw_every is not None
        return {
            "version": STATE_VERSION,
            "rank": current_group().rank,
            "sampler": self.sampler.state_dict(),
            "epoch": self._ended,
            "selected": self._selected,
            "ages": self._ages if redraws else None,
            "scores": self._scores.state_dict() if self._scores else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: when the state is of another version or dataset size, or not whole.
        """
        check_state(state, "PruningCallback", STATE_VERSION, STATE_KEYS)
        n, ages, held = self.sampler.num_samples, state["ages"], state["scores"]
        if ages is None:
            ages = torch.zeros(n, dtype=torch.int64)
        fits = isinstance(ages, torch.Tensor) and ages.dtype == torch.int64 and ages.shape == (n,)
        if not fits and state["sampler"].get("n") == n:
            raise ValueError(f"the state's ages are not {n} whole numbers: a damaged checkpoint")
        if state["rank"] != 0:
            raise ValueError(f"the state was saved on rank {state['rank']}; load the one of rank 0")
        root = self.schedule.redraw_every is not None and current_group().rank == 0
        scores = self.pruner.scores_from(held) if root and held is not None else None
        self.sampler.load_state_dict(state["sampler"])
        self._scores, self._ages = scores, ages.to("cpu", torch.int64)
        self._ended, self._selected = int(state["epoch"]), bool(state["selected"])

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
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        schedule = self.schedule.lasting(epochs)
        kept, full = self._planned_kept(), self.sampler.num_samples
        return optimiser_steps(
            [self.sampler.length(kept if schedule.prunes(e) else full) for e in range(epochs)],
            batch_size=batch_size,
            drop_last=drop_last,
            num_processes=num_processes,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

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
