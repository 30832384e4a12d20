"""The callback through which a training loop prunes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from prunesampler.base.checks import check_state, whole_number
from prunesampler.base.processes import check_world
from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.select.moment import Moment
from prunesampler.select.selection import Selection
from prunesampler.train.announcing import Announcements, Pages, shown_dataset
from prunesampler.train.counting import (
    ResumePoint,
    check_epoch,
    check_fit,
    check_same_data,
    check_sharing,
    checked_on_error,
    say_where,
)
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.planning import PlansSteps
from prunesampler.train.pruners import Pruner, check_schedule
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.redraws import Redraws
from prunesampler.train.run import Run
from prunesampler.train.watch import Watch

if TYPE_CHECKING:
    from accelerate import Accelerator

STATE_VERSION = 1
STATE_KEYS = {"version", "sampler", "epochs_ended", "selected", "redraws"}


class PruningCallback(PlansSteps):
    """Prunes the sampler after the warm-up; optionally selects again, and ends on all samples.

    Call `on_epoch_end` once at the end of every epoch, on every process. Save `state_dict`, which
    includes the sampler's, with the model and the optimizer, to resume a run as if it had not
    stopped. If a run is past its warm-up without a selection, the first call selects. After the
    first epoch it measures a batch on trial (`InfluencePruner.check`).

    With ``redraw_every`` the kept set also changes between measurements: other sets of the same
    budget are drawn from the same scores. The samples left out longest come back first, each within
    ``ceil(1 / k) + 1`` draws, where k is the kept share of the samples that are free to go (see
    `prunesampler.select.rotation`). Use it for networks that are trained from scratch.

    After the first pruned epoch it warns, once, if the sampler was not iterated, if an epoch ran in
    the order of another (a resumed run without ``set_epoch``), and about what `watch` finds.

    Args:
        sampler: Sampler of the training loader.
        pruner: Pruner over the same samples, without augmentation: `InfluencePruner`,
            `prunesampler.train.hardest.TrajectoryPruner`, or one of your own
            (`prunesampler.train.pruners.Pruner`).
        warmup_epochs: Number of epochs on all samples before the first selection, at least 1.
        refresh_every: Number of epochs after which to measure and select again, or None for never.
        redraw_every: Number of epochs after which to draw another set without measuring, or None
            for never. The scores stay in memory on rank 0.
        final_full_epochs: Number of epochs on all samples at the end; needs ``epochs``.
        epochs: Number of epochs of the run, if known. Nothing is selected at its end.
        accelerator: Accelerator of the run, if there is one. Its ``save_state`` and ``load_state``
            then include this callback's state, its trackers get the figures of every selection, and
            its loaders and schedulers are watched.
        on_selection: Function called with every selection, after the sampler was restricted.
        scores_dir: With ``redraw_every``, folder into which rank 0 writes the measurements, once;
            without it every state holds them, ``4 n (2 C + D + 4)`` bytes.
        on_error: Whether a failed selection, or a failed trial, ends the run (``"raise"``) or is
            reported in one warning each while the kept samples stay as they are (``"continue"``).
            Mistakes in the calls themselves are always raised.
        report: Folder into which rank 0 writes a page after every selection, ``epoch-0004.html`` after
            epoch 4; trackers of the accelerator get its path. A page that cannot be written is a warning.
        recorder: Recorder of the run's trajectory, told of the end of each epoch before anything is
            chosen; by default that of the pruner, if it has one.

    Attributes:
        selection: the last selection in this process, or None.
        plan: plan of the epochs that run on all samples and on the kept ones.
        log: function called with the figures of every selection and the step, or None; by default
            the accelerator's.
        managed: whether a framework shares out the samples and saves the state.

    Raises:
        ValueError: For numbers out of range, or a pruner over another number of samples.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from prunesampler import Budget
        >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> sampler = InfluencePrunedSampler(data)
        >>> pruner = InfluencePruner(data, budget=Budget(fraction=0.4), progress=False)
        >>> pruning = PruningCallback(sampler, pruner, warmup_epochs=2)
        >>> loader = DataLoader(data, batch_size=10, sampler=sampler)
        >>> model = torch.nn.Linear(4, 3)
        >>> for epoch in range(4):
        ...     for x, y in loader:
        ...         pass  # a training step
        ...     selection = pruning.on_epoch_end(epoch, model)
        >>> len(loader), pruning.planned_steps(epochs=4, batch_size=10)
        (4, 20)
    """

    def __init__(
        self,
        sampler: InfluencePrunedSampler,
        pruner: Pruner,
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
        recorder: TrajectoryRecorder | None = None,
        report: str | os.PathLike[str] | None = None,
    ) -> None:
        self._on_error = checked_on_error(on_error)
        self.plan = EpochsPlan(
            warmup_epochs, refresh_every, redraw_every, final_full_epochs, epochs
        )
        if final_full_epochs and epochs is None:
            raise ValueError(
                f"final_full_epochs={final_full_epochs} with epochs=None: it needs to know the number "
                "of epochs; give epochs="
            )
        check_schedule(pruner, redraw_every, refresh_every)
        check_fit(sampler, pruner)
        if accelerator is not None:
            check_world(accelerator.num_processes, sampler.num_replicas)
            accelerator.register_for_checkpointing(self)
        self.sampler, self.pruner = sampler, pruner
        self.recorder = getattr(pruner, "recorder", None) if recorder is None else recorder
        self.log: Callable[[dict[str, float], int], Any] | None
        self.log = None if accelerator is None else accelerator.log
        self._accelerator = accelerator
        pages = None
        if report is not None:
            pages = Pages(report, shown_dataset(pruner, sampler), accelerator, pruner.progress)
        self._told = Announcements(pruner.progress, on_selection, pages)
        self.managed = False
        self._scores_dir = None if scores_dir is None else Path(scores_dir)
        self._loaded = ResumePoint(self)
        self._start()

    def _start(self) -> None:
        """Begin a run in which nothing was selected or measured yet."""
        self.selection: Selection | None = None
        redraws = None
        if self.plan.redraw_every is not None and isinstance(self.pruner, InfluencePruner):
            redraws = Redraws(self.pruner, self._scores_dir)
        self._watch = Watch(self.sampler, self._accelerator)
        self._run = Run(
            self.sampler, self.pruner, self._watch, redraws, self._on_error,
            hold_scores=self._told.pages is not None,
        )  # fmt: skip
        self._loaded.ended = None
        self.sampler.listening.expect_call()

    def reset(self) -> None:
        """Begin a new run: all samples are kept again, and the next epoch is the first."""
        if self._run.ended >= 0:
            self.sampler.restart()
        if self.recorder is not None:
            self.recorder.reset()
        self._start()

    def on_epoch_end(
        self, epoch: int, model: nn.Module, *, step: int | None = None
    ) -> Selection | None:
        """Select and restrict the sampler, or keep all samples again, if that is due.

        Args:
            epoch: Epoch that ended, counted from 0.
            model: Model as it is trained, wrapped or not.
            step: Step at which trackers record the figures; default: the epoch. For trackers whose
                steps must rise give the number of optimiser steps so far.

        Returns:
            The new selection, if there is one.

        Raises:
            ValueError: As in `InfluencePruner.select`; also when ``epoch`` is not the one after the
                last, for example when it is counted from 1 or does not fit the loaded state.
            RuntimeError: If the sampler's seed, size or kept set differs between ranks.
        """
        loaded, clock = self._loaded.ended is not None, self.sampler.clock
        self._loaded.silent = True  # an epoch was trained, even if this call fails
        check_epoch(epoch, self._run.ended, loaded=loaded, restored=clock.restored)
        self._watch.epoch_ended(epoch, self.plan)
        clock.settle()
        if self.recorder is not None:
            self.recorder.on_epoch_end(epoch)
            share = self.recorder.last_headroom
            if self.log is not None and share is not None:
                self.log({"trajectory/headroom": share}, epoch if step is None else step)
        selection = self._prepare(epoch + 1, model, step)
        clock.reach(epoch + 1)
        return selection

    def catch_up(
        self, epoch: int, model: nn.Module, *, step: int | None = None
    ) -> Selection | None:
        """Do what was due before this coming epoch, if the checkpoint was saved before it was done.

        That happens if checkpoints are saved between an epoch's last batch and `on_epoch_end`, as
        frameworks do; their integrations call this. Otherwise it does nothing.

        Args:
            epoch: First epoch of the resumed run, counted from 0.
            model: Restored model.
            step: Step for trackers, as in `on_epoch_end`.
        """
        if self._run.ended >= epoch - 1:
            self._loaded.ended = None
            return None
        selection = self._prepare(epoch, model, step)
        state = self.sampler.state_dict()
        self.sampler.restore({**state, "epoch": max(epoch, state["epoch"])}, epoch)
        return selection

    def watch(self, *, loader: Any = None, scheduler: Any = None) -> None:
        """Check these at the end of the first pruned epoch, and warn about mistakes.

        It finds batches larger than the kept set and, if ``epochs`` is known, learning-rate
        schedules longer than the run. With accelerate and the integrations this needs no call.

        Args:
            loader: Training loader, or None.
            scheduler: Learning-rate scheduler, as in ``torch.optim.lr_scheduler``, or None.
        """
        self._watch.add([loader], [scheduler])

    def _prepare(self, coming: int, model: nn.Module, step: int | None) -> Selection | None:
        """Decide what is due before this coming epoch, do it, and report the selection."""
        started, run = time.perf_counter(), self._run
        self.sampler.listening.called()
        if run.last_end is None and not self.managed and self._accelerator is None:
            check_sharing(self.sampler)
        before = self.sampler.kept
        due = run.due(self.plan, coming)
        selection = run.do(due, self.plan, coming, model)
        if selection is not None:
            self.selection = selection
            whole = len(before) == self.sampler.num_samples
            moment = Moment(
                coming - 1,
                time.perf_counter() - started,
                None if run.last_end is None else started - run.last_end,
                self._lengths_from(coming),
                None if whole else before,
            )
            at = coming - 1 if step is None else step
            self._told.of(selection, moment, run.take_scores(), step=at, log=self.log)
        self._loaded.ended = None
        run.end_epoch(coming - 1)
        return selection

    def state_dict(self) -> dict[str, Any]:
        """The state of the run, with the sampler's; save the one of rank 0.

        With ``redraw_every`` only that one holds the measurements, or the name of their file.
        """
        run = self._run
        return {
            "version": STATE_VERSION,
            "sampler": self.sampler.state_dict(),
            "epochs_ended": run.ended + 1,
            "selected": run.selected,
            "redraws": None if run.redraws is None else run.redraws.state_dict(),
            "data": self.pruner.outline,
            "within": self.sampler.clock.running,
            "recorder": None if self.recorder is None else self.recorder.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: If the state has another version or dataset, or is incomplete.
        """
        check_state(state, type(self).__name__, STATE_VERSION, STATE_KEYS)
        check_same_data(self.pruner, state.get("data"))
        ended = whole_number("epochs_ended", state["epochs_ended"])
        self.sampler.read_state(state["sampler"])  # before anything is changed
        run = self._run
        if run.redraws is not None and state["redraws"] is not None:
            run.redraws.load_state_dict(state["redraws"])
        if self.recorder is not None and state.get("recorder") is not None:
            within = bool(state.get("within"))
            self.recorder.load_state_dict(state["recorder"], epochs=ended, within=within)
        self.sampler.restore(state["sampler"], ended)
        run.ended, run.selected = ended - 1, bool(state["selected"])
        self._loaded.ended, self._loaded.silent = ended, self.managed
        if self._accelerator is not None and state.get("within"):
            stateful = getattr(self._accelerator, "use_stateful_dataloader", False)
            say_where(self.sampler, ended, stateful=stateful)
