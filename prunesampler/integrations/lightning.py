"""PyTorch Lightning: a callback that prunes, and keeps validation and checkpoints working."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prunesampler.integrations.common import HoldsPruning, require
from prunesampler.sampling.loaders import loaders_in, sampler_of
from prunesampler.train.steps import optimiser_steps

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

require(("lightning", "pytorch_lightning"), "2.4", "lightning")

# Both packages have the same content but their own classes; a user's Trainer is from either.
BASES = [
    import_module(name).Callback
    for name in ("lightning.pytorch", "pytorch_lightning")
    if find_spec(name.partition(".")[0])
]

# Lightning makes the training loader again after this number of epochs; a negative number means at
# once, even before the first epoch of a run.
AT_ONCE = -1


class PruningCallback(HoldsPruning, *BASES):  # type: ignore[misc]
    """Prunes the sampler of a Lightning run, for ``Trainer(callbacks=[...])``.

    The arguments are those of `prunesampler.PruningCallback`; `HoldsPruning` lists the differences.

    The loader may come from ``fit(train_dataloaders=)`` or from a ``train_dataloader`` hook that
    always returns a loader around this one sampler. Lightning counts a loader's batches, and in
    data-parallel runs its samples, only when it makes the loader: so after each change of the kept set
    the training loader is made again. Validation then runs at the end of every epoch as before.

    Lightning's checkpoints hold the state. If one was written before its epoch's selection, at the
    end of validation, the selection is made when the run resumes. To resume within an epoch use
    torchdata's StatefulDataLoader: Lightning does not skip batches of other loaders.

    Where ``setup()`` of a DataModule or of the LightningModule makes the data, give functions of the
    trainer, which are called after that, once in each ``fit``::

        PruningCallback(
            lambda trainer: trainer.lightning_module.sampler,
            lambda trainer: InfluencePruner(trainer.datamodule.train_set, budget=budget),
        )

    ``trainer.estimated_stepping_batches`` does not know of pruning: size schedules with
    `planned_steps`, with functions not before ``configure_optimizers()``. Loggers receive the kept
    samples, the shift and the seconds of every selection.

    Examples:
        With a loader around the sampler::

            pruning = PruningCallback(sampler, pruner, warmup_epochs=5)
            trainer = Trainer(max_epochs=30, callbacks=[pruning])
            trainer.fit(model, DataLoader(train_set, 128, sampler=sampler))
    """

    _every = 0  # epochs after which the trainer is to make its training loader again
    _restored = False  # whether a state was loaded for the run that begins
    _over = 0  # number of epochs whose end was dealt with

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

        See `prunesampler.PruningCallback.planned_steps`. Lightning shares out samples, not batches:
        each process gets an equal number, and the last ones are padded. So ``num_processes`` is
        ``trainer.world_size``, or 1 with ``use_distributed_sampler=False``;
        ``gradient_accumulation_steps`` is ``accumulate_grad_batches``.
        """
        return optimiser_steps(
            [-(-length // num_processes) for length in self.pruning.planned_lengths(epochs)],
            batch_size=batch_size,
            drop_last=drop_last,
            num_processes=1,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Prepare for a run."""
        if stage == "fit":
            self._restored = False  # Lightning loads a state after this
            self._join(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prepare for a run, if this callback was added after the others had been set up."""
        self._join(trainer, late=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check who shares out the samples, and make a selection that the checkpoint missed.

        Raises:
            ValueError: If samples would be shared out twice or not at all, when validation comes
                after more batches than a pruned epoch has, or when a run cannot be resumed from here.
        """
        self._join(trainer, late=True)
        loaders = loaders_in(trainer.train_dataloader)
        self._check_shares(trainer, loaders)
        self._check_validation(trainer)
        for config in trainer.lr_scheduler_configs:
            self.pruning.watch(scheduler=config.scheduler)
        for loader in loaders:
            self.pruning.watch(loader=loader)
        self.record(loaders, pl_module)
        before = len(self.sampler)
        with self._reloading(trainer):
            self.pruning.catch_up(trainer.current_epoch, pl_module, step=trainer.global_step)
        epoch_loop = trainer.fit_loop.epoch_loop
        if len(self.sampler) > before and getattr(
            epoch_loop, "restarted_on_train_batch_end", False
        ):
            raise ValueError(
                f"the checkpoint is of the last batch of epoch {trainer.current_epoch - 1}, and the "
                "next epoch is longer, which Lightning takes for an epoch half done; resume from a "
                "checkpoint of another batch or of the epoch's end"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the sampler's epoch, which Lightning does in runs of one process only."""
        self._join(trainer, late=True)
        trainer.reload_dataloaders_every_n_epochs = self._every
        self.sampler.set_epoch(trainer.current_epoch)
        self.record(loaders_in(trainer.train_dataloader), pl_module)  # it may have been made again

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select if that is due, and then let Lightning make the training loader again."""
        epoch = trainer.current_epoch
        # With max_steps, Lightning goes through the end of an epoch again when it resumes from there.
        if epoch >= self._over:
            with self._reloading(trainer):
                self.pruning.on_epoch_end(epoch, pl_module, step=trainer.global_step)
        self._over = max(self._over, epoch + 1)
        self.sampler.set_epoch(epoch + 1)  # so that a checkpoint holds the coming epoch

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        if stage == "fit" and self._trainer is trainer:
            trainer.reload_dataloaders_every_n_epochs = self._every
            self._restored = False
            self.meet(None)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """As `prunesampler.PruningCallback.load_state_dict`."""
        super().load_state_dict(state_dict)
        self._restored, self._over = True, int(state_dict.get("epochs_ended", 0))

    def _join(self, trainer: Trainer, *, late: bool = False) -> None:
        """Find out how long the run is, and whether it continues an earlier one.

        Args:
            trainer: Trainer of the run that begins.
            late: Whether to do nothing if this was done before.
        """
        if late and self._trainer is trainer:
            return
        self.meet(trainer)
        known = not trainer.fast_dev_run and trainer.max_epochs is not None
        self.expect_epochs(trainer.max_epochs if known and trainer.max_epochs > 0 else None)
        if not self._restored:
            self._over = trainer.current_epoch
        self.begin_run(anew=trainer.current_epoch == 0 and not self._restored)
        self._every = trainer.reload_dataloaders_every_n_epochs
        self.log_to(
            lambda numbers, step: [logger.log_metrics(numbers, step) for logger in trainer.loggers]
        )

    @contextmanager
    def _reloading(self, trainer: Trainer) -> Iterator[None]:
        """If the kept set changes inside, have Lightning make the training loader again."""
        before = self.sampler.kept
        yield
        if self.sampler.kept is not before:
            trainer.reload_dataloaders_every_n_epochs = AT_ONCE

    def _check_shares(self, trainer: Trainer, loaders: list[Any]) -> None:
        """Check that either Lightning or the sampler shares out the samples over the processes."""
        ours = any(sampler_of(loader) is self.sampler for loader in loaders)
        replicas, world = self.sampler.num_replicas, trainer.world_size
        if replicas != (world if ours else 1):
            who = (
                "hands the sampler to every process as it is" if ours else "shares out the batches"
            )
            raise ValueError(
                f"the sampler has num_replicas={replicas}, and Lightning {who} on {world} processes: "
                "leave num_replicas at 1 and use_distributed_sampler on, or use neither"
            )

    def _check_validation(self, trainer: Trainer) -> None:
        """Refuse a number of batches between validations that no pruned epoch has."""
        interval, budget = trainer.val_check_interval, self.pruning.pruner.budget
        by_batches = isinstance(interval, int) and trainer.check_val_every_n_epoch is not None
        if not by_batches or budget.epsilon is not None or not trainer.limit_val_batches:
            return
        n, batches = self.sampler.num_samples, trainer.num_training_batches
        kept = self.sampler.length(n - budget.count_of(n))
        pruned = math.ceil(batches * kept / len(self.sampler))
        if interval > pruned:
            raise ValueError(
                f"val_check_interval={interval} is more than the {pruned} batches of a pruned epoch, "
                "which Lightning refuses then; give a fraction of an epoch, or "
                "check_val_every_n_epoch=None"
            )
