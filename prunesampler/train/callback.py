"""When to prune: the one object a training loop talks to."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Mapping
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from prunesampler.base.checks import check_state, warn, whole_number
from prunesampler.base.processes import check_world, current_group, together
from prunesampler.measure.probing import check_same_labels
from prunesampler.pruner import InfluencePruner
from prunesampler.report.text import figures, summary, tell
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.selection import Selection
from prunesampler.train.counting import check_epoch, check_sharing, say_if_unused, say_where
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.redraws import Redraws
from prunesampler.train.steps import optimiser_steps, planned_lengths
from prunesampler.train.watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_VERSION = 1
STATE_KEYS = {"version", "sampler", "epochs_ended", "selected", "redraws"}


class PruningCallback:
    """Prunes the sampler after the warm-up, and again or back to all samples if asked to.

    Call `on_epoch_end` once at the end of every epoch, on every process. Its state holds the sampler's:
    save `state_dict` with the model and the optimizer, and a resumed run goes on as if it had not
    stopped. If a run is past its warm-up and nothing was selected yet, the first call selects. At the
    end of the first epoch it measures a batch on trial (`InfluencePruner.check`).

    With ``redraw_every`` the kept set changes between two measurements: another set of the same
    budget, from the scores at hand, and the samples left out longest come back first, each within
    ``ceil(1 / k) + 1`` draws, where k is the kept share of the samples that are free to go (see
    `prunesampler.select.rotation`). For networks trained from scratch this is the mode to use.

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
        scores_dir: with ``redraw_every``, a folder into which rank 0 writes what it measured, once;
            without it every state holds that, ``4 n (2 C + D + 4)`` bytes.
        on_error: ``"raise"`` what goes wrong in a selection, or ``"continue"``: say so in a warning,
            once, and go on with the samples that were kept before. Mistakes in the calls themselves
            are raised in any case.

    Attributes:
        selection: the last selection in this process, or None.
        schedule: when to do what.
        log: gets numbers by name and the step with every selection, or None; the trackers of the
            accelerator, if there is one.
        managed: whether a framework shares out the samples and saves the state; its integration
            sets this.

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
        scores_dir: str | os.PathLike[str] | None = None,
        on_error: Literal["raise", "continue"] = "raise",
    ) -> None:
        if on_error not in ("raise", "continue"):
            raise ValueError(f"on_error must be 'raise' or 'continue', got {on_error!r}")
        if pruner.num_samples != sampler.num_samples:
            raise ValueError(
                f"score_dataset has {pruner.num_samples} samples, the sampler's dataset "
                f"{sampler.num_samples}; score the training set itself, without augmentation"
            )
        self.plan = EpochsPlan(
            warmup_epochs, refresh_every, redraw_every, final_full_epochs, epochs
        )
        if final_full_epochs and epochs is None:
            raise ValueError(
                f"final_full_epochs={final_full_epochs} with epochs=None: it needs to know the number "
                "of epochs; give epochs="
            )
        sampler.check_size(sampler.num_samples - pruner.budget.count_of(sampler.num_samples))
        if accelerator is not None:
            check_world(accelerator.num_processes, sampler.num_replicas)
            accelerator.register_for_checkpointing(self)
        if len(sampler.kept) < sampler.num_samples and not sampler.restored:
            warn(
                f"the sampler is restricted to {len(sampler.kept)} of {sampler.num_samples} samples "
                "already, on which the warm-up would run too; for another run with it, call "
                "sampler.restart() first"
            )
        self.sampler, self.pruner = sampler, pruner
        self.log: Callable[[dict[str, float], int], Any] | None
        self.log = None if accelerator is None else accelerator.log
        self._accelerator, self._on_selection = accelerator, on_selection
        self._on_error, self.managed = on_error, False
        self._scores_dir = None if scores_dir is None else Path(scores_dir)
        # Epochs in a state that was loaded, and whether a framework did it, until an epoch ends.
        self._unused: list[int] = []
        weakref.finalize(self, say_if_unused, self._unused)
        self._start()

    def _start(self) -> None:
        """Nothing selected, nothing measured."""
        self.selection: Selection | None = None
        self._watch = Watch(self.sampler)
        self._selected = self._failed = False
        self._unused.clear()
        self.sampler.expect_call()
        self._redraws = None
        if self.plan.redraw_every is not None:
            self._redraws = Redraws(self.pruner, self._scores_dir)
        self._ended = -1  # the last epoch whose end was seen
        self._last_end: float | None = None

    def reset(self) -> None:
        """Forget an earlier run: all samples are kept again, and the next epoch is the first."""
        if self._ended >= 0:
            self.sampler.restart()
        self._start()

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
            ValueError: see `InfluencePruner.select`; also for an epoch that is not the one after the
                last: counted from 1, told twice, or another than the state that was loaded leads to.
            RuntimeError: when the sampler's seed, size or kept set differs between ranks.
        """
        loaded = bool(self._unused)
        if loaded:
            self._unused[1] = True  # an epoch was trained, so there is nothing to say at the end
        check_epoch(epoch, self._ended, loaded=loaded, restored=self.sampler.restored)
        self._look(epoch)
        self.sampler.settle()
        selection = self._prepare(epoch + 1, model, step)
        self.sampler.reach_epoch(epoch + 1)
        return selection

    def _prepare(self, coming: int, model: nn.Module, step: int | None) -> Selection | None:
        """Do what is due before this coming epoch."""
        started, schedule, selection = time.perf_counter(), self.plan, None
        self.sampler.called()
        if self._last_end is None and not self.managed and self._accelerator is None:
            check_sharing(self.sampler)
        if schedule.ends_pruning(coming):
            self.sampler.reset()
        elif not schedule.over(coming) and (self._selects(coming) or schedule.redraws(coming)):
            selection = self._attempt(coming, partial(self._choose, coming, model))
        elif self._last_end is None and not self._selected and schedule.prunes_from(coming):
            # Most of what cannot be measured is found now, before the warm-up has been paid for.
            self._attempt(coming, partial(self._try, model))
        if selection is not None:
            self._announce(selection, coming - 1, step, started)
        self._unused.clear()
        self._ended, self._last_end = coming - 1, time.perf_counter()
        return selection

    def _attempt(self, coming: int, work: Callable[[], Selection | None]) -> Selection | None:
        """What the work returns; None if it fails and that must not end the run."""
        try:
            return work()
        except Exception as error:
            if self._on_error == "raise":
                raise
            if not self._failed:
                warn(
                    f"PRUNING FAILED after epoch {coming - 1}, and training goes on with "
                    f"{len(self.sampler.kept)} of {self.sampler.num_samples} samples: "
                    f"{type(error).__name__}: {error}"
                )
            self._failed = True
            return None

    def _try(self, model: nn.Module) -> None:
        """Measure a batch on trial, and look at the batches that there will be."""
        self.pruner.check(model)
        if self.pruner.budget.epsilon is None:
            n = self.sampler.num_samples
            self._watch.check_batches(model, n - self.pruner.budget.count_of(n))

    def _announce(self, selection: Selection, epoch: int, step: int | None, started: float) -> None:
        """Tell of a selection: in the terminal, to the trackers, to the user's function."""
        before, now = self._last_end, time.perf_counter()
        if current_group().rank == 0:
            epoch_seconds = None if before is None else started - before
            text = summary(epoch, selection, now - started, epoch_seconds)
            tell(text, self.pruner.progress)
        if self.log is not None:
            self.log(figures(selection, now - started), epoch if step is None else step)
        if self._on_selection is not None:
            self._on_selection(selection)

    def catch_up(
        self, epoch: int, model: nn.Module, *, step: int | None = None
    ) -> Selection | None:
        """Do what was due before this coming epoch, if a checkpoint was saved before it was done.

        Needed where checkpoints are saved between an epoch's last batch and `on_epoch_end`, as
        frameworks do; their integrations call it. Otherwise it does nothing.

        Args:
            epoch: the first epoch of the resumed run, counted from 0.
            model: as it was restored.
            step: see `on_epoch_end`.
        """
        if self._ended >= epoch - 1:
            self._unused.clear()
            return None
        selection, state = self._prepare(epoch, model, step), self.sampler.state_dict()
        self.sampler.restore({**state, "epoch": max(epoch, state["epoch"])}, epoch)
        return selection

    def watch(self, *, loader: Any = None, scheduler: Any = None) -> None:
        """Warn at the end of the first pruned epoch of what these would spoil without a word.

        That is: a batch larger than the kept set, and a schedule of the learning rate that is longer
        than the run, where ``epochs`` is known. accelerate's, and those of the integrations, are
        watched without asking.

        Args:
            loader: of the training, or None.
            scheduler: of the learning rate, as in ``torch.optim.lr_scheduler``, or None.
        """
        self._watch.add([loader], [scheduler])

    def _look(self, epoch: int) -> None:
        """Let the watch see the epoch that ended; on rank 0, which always iterates the sampler."""
        if current_group().rank:
            return
        if self._accelerator is not None:  # what it prepared is not public; without it: no warning
            self._watch.add(
                getattr(self._accelerator, "_dataloaders", ()),
                getattr(self._accelerator, "_schedulers", ()),
            )
        self._watch.epoch_ended(epoch, self.plan)

    def _selects(self, epoch: int) -> bool:
        """Whether a selection is due before this coming epoch, or was and has been missed."""
        missed = not self._selected and len(self.sampler.kept) == self.sampler.num_samples
        return self.plan.selects(epoch) or (self.plan.prunes(epoch) and missed and not self._failed)

    def _choose(self, epoch: int, model: nn.Module) -> Selection:
        """The selection for this coming epoch, to which the sampler is restricted on all ranks."""
        group = current_group()
        group.meet("on_epoch_end")
        if not self._selected:
            check_same_labels(self.sampler.dataset, self.pruner.dataset, self.pruner.reading)
        if self._redraws is None:
            selection = self.pruner.select(model)
        else:
            kept = self.sampler.kept
            selection = self._redraws.draw(model, kept, measure=self._selects(epoch))
        together(group, partial(self.sampler.restrict, selection))
        state = self.sampler.state_dict()
        group.check_equal("the samplers", repr((state["n"], state["seed"], state["kept"])).encode())
        self.selection, self._selected = selection, True
        return selection

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: the sampler's state, and what a redraw needs.

        With ``redraw_every`` that includes the measurements, or the name of their file in
        ``scores_dir``, on rank 0 only: save rank 0's.
        """
        return {
            "version": STATE_VERSION,
            "sampler": self.sampler.state_dict(),
            "epochs_ended": self._ended + 1,
            "selected": self._selected,
            "redraws": None if self._redraws is None else self._redraws.state_dict(),
            "data": self.pruner.outline,
            "within": self.sampler.running,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: when the state is of another version or dataset, or not whole.
        """
        check_state(state, type(self).__name__, STATE_VERSION, STATE_KEYS)
        known = state.get("data")
        if known is not None and known != self.pruner.look():
            raise ValueError(
                "the state is of another dataset of the same size: a few labels and shapes of "
                "score_dataset are not those it was saved with; resume with the dataset of the "
                "checkpoint, in the same order"
            )
        ended = whole_number("epochs_ended", state["epochs_ended"])
        copy(self.sampler).restore(state["sampler"], ended)  # an error must change nothing
        if self._redraws is not None and state["redraws"] is not None:
            self._redraws.load_state_dict(state["redraws"])
        self.sampler.restore(state["sampler"], ended)
        self._ended, self._selected = ended - 1, bool(state["selected"])
        self._unused[:] = [ended, self.managed]
        if self._accelerator is not None and state.get("within"):
            stateful = getattr(self._accelerator, "use_stateful_dataloader", False)
            say_where(self.sampler, ended, stateful=stateful)

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

        With ``Budget(epsilon=)``, and with groups of samples that go together, the number of pruned
        samples is known only after the selection.
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
        return optimiser_steps(
            self.planned_lengths(epochs),
            batch_size=batch_size,
            drop_last=drop_last,
            num_processes=num_processes,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

    def planned_lengths(self, epochs: int) -> list[int]:
        """Samples that each epoch of a run of so many draws, on one rank of the sampler.

        Raises:
            ValueError: for no epoch, or another number than the callback was made for.
        """
        if epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {epochs}")
        chosen = None if self.selection is None else len(self.selection.kept)
        return planned_lengths(
            self.plan.lasting(epochs),
            self.sampler,
            self.pruner.budget,
            chosen,
            self.pruner.constraints,
        )
