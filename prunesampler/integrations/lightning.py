"""PyTorch Lightning: prune at the end of an epoch, and keep validation and checkpoints alive."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from prunesampler.integrations.common import HoldsPruning, require
from prunesampler.loaders import sampler_of

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer

require(("lightning", "pytorch_lightning"), "2.4", "lightning")

# Two packages with the same content and classes of their own: whichever a user's Trainer is from.
BASES = [
    import_module(name).Callback
    for name in ("lightning.pytorch", "pytorch_lightning")
    if find_spec(name.partition(".")[0])
]

AT_ONCE = -1  # so many epochs after the last time, Lightning makes the training loader again


class PruningCallback(HoldsPruning, *BASES):  # type: ignore[misc]
    """Prunes the sampler of a Lightning run, for ``Trainer(callbacks=[...])``.

    The loader may come from ``fit(train_dataloaders=)`` or from a ``train_dataloader`` hook that
    always returns a loader around this one sampler. Lightning counts a loader's batches, and in
    data-parallel runs its samples, only when it makes the loader: so after each change of the kept set
    the training loader is made again. Validation then runs at the end of every epoch as before.

    State is in Lightning's checkpoints. A checkpoint that was written before the epoch's selection, at
    the end of validation, is caught up on when the run resumes. ``trainer.estimated_stepping_batches``
    does not know of pruning: size schedules with ``planned_steps``.

    Loggers of the trainer receive the kept samples, the shift and the seconds of every selection.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Learn how long the run is; forget an earlier run, unless this one goes on from it."""
        if stage != "fit":
            return
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            self.expect_epochs(trainer.max_epochs)
        if trainer.current_epoch == 0:  # state is restored later, if at all
            self.pruning.reset()
        self._every: int = trainer.reload_dataloaders_every_n_epochs
        self.pruning.log = lambda numbers, step: [
            logger.log_metrics(numbers, step) for logger in trainer.loggers
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check who shares out the samples, and catch up on what a checkpoint came too early for."""
        self._check_shares(trainer)
        for config in trainer.lr_scheduler_configs:
            self.pruning.watch(scheduler=config.scheduler)
        self.pruning.watch(loader=trainer.train_dataloader)
        if self.pruning.catch_up(trainer.current_epoch, pl_module) is not None:
            trainer.reload_dataloaders_every_n_epochs = AT_ONCE

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the order; Lightning tells the sampler its epoch in runs of one process only."""
        trainer.reload_dataloaders_every_n_epochs = self._every
        self.sampler.set_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Select if it is time, and have the training loader made again."""
        epoch, size = trainer.current_epoch, len(self.sampler)
        self.sampler.set_epoch(epoch + 1)
        selection = self.pruning.on_epoch_end(epoch, pl_module, step=trainer.global_step)
        if selection is not None or len(self.sampler) != size:
            trainer.reload_dataloaders_every_n_epochs = AT_ONCE

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the trainer as it was."""
        if stage == "fit":
            trainer.reload_dataloaders_every_n_epochs = self._every

    def state_dict(self) -> dict[str, Any]:
        """See `prunesampler.PruningCallback.state_dict`."""
        return self.pruning.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """See `prunesampler.PruningCallback.load_state_dict`."""
        self.pruning.load_state_dict(state_dict)

    def _check_shares(self, trainer: Trainer) -> None:
        """Check that the samples are shared out over the processes once: by Lightning or by us.

        Raises:
            ValueError: when it is not so.
        """
        ours = sampler_of(trainer.train_dataloader) is self.sampler
        replicas, world = self.sampler.num_replicas, trainer.world_size
        if replicas != (world if ours else 1):
            who = (
                "hands the sampler to every process as it is" if ours else "shares out the batches"
            )
            raise ValueError(
                f"the sampler has num_replicas={replicas}, and Lightning {who} on {world} processes: "
                "leave num_replicas at 1 and use_distributed_sampler on, or use neither"
            )
