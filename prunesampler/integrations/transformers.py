"""The Hugging Face Trainer: a callback that prunes, and a mixin that gives it the sampler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import default_collate

from prunesampler.base.files import pack_state, unpack_state, write_atomically
from prunesampler.integrations.common import HoldsPruning, require
from prunesampler.pruner import InfluencePruner
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.train.steps import optimiser_steps

require(("transformers",), "5.20", "transformers")  # older ones resume in another order

from transformers import (  # noqa: E402  after the check that it is there
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

FILE = "pruning.safetensors"
CONSTANT = 'InfluencePrunedSampler(..., epoch_length="constant")'


class PruningCallback(HoldsPruning, TrainerCallback):  # type: ignore[misc]
    """Prunes the sampler of a Hugging Face Trainer; needs `PruningTrainerMixin` in the trainer.

    The arguments are those of `prunesampler.PruningCallback`; `HoldsPruning` lists the differences.

    The Trainer counts steps and epochs once, from the full loader. So prefer a sampler with
    ``epoch_length="constant"``: every count, the schedule, accumulation and resuming are then as
    without pruning, and you save by training fewer epochs.

    With ``epoch_length="shrink"`` epochs get shorter, and the schedule and ``max_steps`` are set to
    the planned steps. There the Trainer cannot resume once samples are pruned, cannot accumulate
    gradients over batches that do not divide an epoch, and cannot take ``max_steps``: all three are
    refused. The fractions of epochs in its log are of a full epoch.

    The pruner makes batches as the Trainer does, with its ``data_collator`` and without the columns
    that the model does not take, unless it was given ``collate_fn=`` or ``like=``. If the trainer
    makes its dataset itself, give functions of the trainer that return the sampler and the pruner.

    Every checkpoint holds the state as ``pruning.safetensors``; the Trainer's loggers receive the kept
    samples, the shift and the seconds of every selection.

    Examples:
        With a trainer of your own that uses the sampler::

            class MyTrainer(PruningTrainerMixin, Trainer): ...

            pruning = PruningCallback(sampler, pruner, warmup_epochs=5)
            MyTrainer(model, args, train_dataset=train_set, callbacks=[pruning]).train()
    """

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,  # the Trainer passes what it has, by name
    ) -> None:
        """Refuse settings that cannot work, set the run's length, and forget an earlier run."""
        if state.is_hyper_param_search:
            raise ValueError(
                "a hyperparameter search trains many times, but a sampler serves one run; build "
                "trainer, sampler and callback anew for every trial"
            )
        if self._log is None:
            raise TypeError(
                "the trainer does not use the sampler: derive it from PruningTrainerMixin, as in "
                "class MyTrainer(PruningTrainerMixin, Trainer): ..."
            )
        if state.global_step == 0:
            self.pruning.reset()
        if self.sampler.epoch_length == "shrink":
            self._check_shrinking(args)
            state.max_steps = self.steps_of(args)
        self.expect_epochs(state.num_train_epochs)
        self.pruning.watch(loader=others["train_dataloader"], scheduler=others["lr_scheduler"])
        self.record([others["train_dataloader"]], others["model"])

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Make the selection that a resumed run's checkpoint was saved before, if any."""
        epoch = int(state.epoch or 0)
        self.pruning.catch_up(epoch, others["model"], step=state.global_step)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Select if that is due."""
        epoch = math.ceil(state.epoch) - 1
        self.pruning.on_epoch_end(epoch, others["model"], step=state.global_step)

    def on_save(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **others: Any,
    ) -> None:
        """Write the state into the checkpoint's folder, on every node that has one of its own."""
        if args.should_save:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / FILE, pack_state(self.pruning.state_dict()))

    def resume(self, checkpoint: str) -> None:
        """Restore the state that a checkpoint's folder holds.

        Raises:
            ValueError: If it holds no state, or the run cannot be resumed.
        """
        file = Path(checkpoint) / FILE
        if not file.exists():
            raise ValueError(
                f"{checkpoint} has no {FILE}: it was saved without this callback, on the disk of another "
                "node (then use save_on_each_node=True), or the run was killed while saving; resume "
                "from an earlier checkpoint, or train from the start"
            )
        self.pruning.load_state_dict(unpack_state(file.read_bytes()))
        pruned = len(self.sampler.kept) < self.sampler.num_samples
        if pruned and self.sampler.epoch_length == "shrink":
            raise ValueError(
                "the Trainer finds its place in a resumed run by the length of a full epoch, so a run "
                f'with epoch_length="shrink" cannot be resumed once it is pruned; use {CONSTANT}'
            )

    def steps_of(self, args: TrainingArguments) -> int:
        """Number of optimiser steps of the whole run with these arguments."""
        lengths = self.pruning.planned_lengths(math.ceil(args.num_train_epochs))
        return _steps(lengths, args, args.gradient_accumulation_steps)

    def _check_shrinking(self, args: TrainingArguments) -> None:
        """Refuse settings that the Trainer cannot combine with epochs that get shorter."""
        budget, accumulated = self.pruning.pruner.budget, args.gradient_accumulation_steps
        why = None
        if args.auto_find_batch_size:
            why = "auto_find_batch_size=True changes the steps while it runs"
        elif args.max_steps > 0:
            why = f"max_steps={args.max_steps} is counted in full epochs"
        elif args.num_train_epochs % 1:
            why = f"num_train_epochs={args.num_train_epochs} is not whole"
        elif budget.epsilon is not None:
            why = f"with Budget(epsilon={budget.epsilon}) the steps are not known beforehand"
        elif accumulated > 1 and self._batches(args) % accumulated:
            why = (
                f"gradient_accumulation_steps={accumulated} does not divide the {self._batches(args)} "
                "batches of a pruned epoch, and the Trainer would carry the rest over"
            )
        if why is not None:
            raise ValueError(f'{why}, which epoch_length="shrink" breaks; use {CONSTANT}')

    def _batches(self, args: TrainingArguments) -> int:
        """Number of batches of a pruned epoch on one process."""
        n = self.sampler.num_samples
        kept = self.sampler.length(n - self.pruning.pruner.budget.count_of(n))
        return _steps([kept], args, accumulated=1)


def _steps(lengths: list[int], args: TrainingArguments, accumulated: int) -> int:
    """Number of optimiser steps of epochs of these lengths; one step is ``accumulated`` batches."""
    split = args.accelerator_config.split_batches  # then all processes share one batch
    return optimiser_steps(
        lengths,
        batch_size=args.train_batch_size,
        drop_last=args.dataloader_drop_last,
        num_processes=1 if split else int(args.world_size),
        gradient_accumulation_steps=accumulated,
    )


@dataclass(frozen=True)
class TrainersCollate:
    """Makes batches as a Trainer does; batches of pairs ``(x, y)`` as torch does.

    Args:
        collate: The Trainer's collator, after removal of the columns that the model does not take.
        own: Whether the collator is one of transformers, which take mappings only.

    Examples:
        >>> TrainersCollate(lambda items: items, own=True)([(1, 2), (3, 4)])
        [tensor([1, 3]), tensor([2, 4])]
    """

    collate: Callable[[list[Any]], Any]
    own: bool

    def __call__(self, items: list[Any]) -> Any:
        """Make one batch of these samples."""
        pairs = isinstance(items[0], (tuple, list, Tensor))
        return default_collate(items) if pairs and self.own else self.collate(items)


class PruningTrainerMixin:
    """Gives a Trainer the sampler of its `PruningCallback`.

    Examples:
        Put it before the Trainer, and pass the callback in ``callbacks=``::

            class MyTrainer(PruningTrainerMixin, Trainer): ...
    """

    def _pruning(self) -> PruningCallback:
        """The trainer's one `PruningCallback`.

        Raises:
            TypeError: If there is none, or more than one.
        """
        handler = self.callback_handler  # type: ignore[attr-defined]
        found = [part for part in handler.callbacks if isinstance(part, PruningCallback)]
        if len(found) != 1:
            raise TypeError(
                f"{type(self).__name__} has {len(found)} PruningCallbacks in callbacks=, and needs "
                "one of prunesampler.integrations.transformers"
            )
        found[0].meet(self)
        return found[0]

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, after an earlier run was forgotten; the Trainer counts batches after that."""
        self._pruning().begin_run(anew=True)
        return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)  # type: ignore[misc]

    def _get_train_sampler(self, train_dataset: Any = None) -> InfluencePrunedSampler:
        """The pruning sampler, instead of a random one; also lends the pruner the collator."""
        callback = self._pruning()
        sampler = callback.sampler
        data = self.train_dataset if train_dataset is None else train_dataset  # type: ignore[attr-defined]
        if len(data) != sampler.num_samples:
            raise ValueError(
                f"train_dataset has {len(data)} samples, the sampler's dataset {sampler.num_samples}; "
                "build the sampler from the trainer's dataset"
            )
        if sampler.num_replicas > 1:
            raise ValueError(
                f"the sampler has num_replicas={sampler.num_replicas}, but the Trainer shares out the "
                "batches itself; leave it at 1"
            )
        if self.args.train_sampling_strategy != "random":  # type: ignore[attr-defined]
            raise ValueError(
                f"train_sampling_strategy={self.args.train_sampling_strategy!r} would be lost: the "  # type: ignore[attr-defined]
                'pruning sampler chooses the order; use "random"'
            )
        callback.log_to(lambda numbers, step: self.log(numbers))  # type: ignore[attr-defined]
        if isinstance(callback.pruning.pruner, InfluencePruner):
            callback.pruning.pruner.lend_collate(self._collate())
        return sampler

    def _collate(self) -> TrainersCollate:
        """The collate function of training, which also drops columns that the model does not take."""
        collator = self.data_collator  # type: ignore[attr-defined]
        home = getattr(collator, "__module__", None) or type(collator).__module__
        return TrainersCollate(
            self._get_collator_with_removed_columns(collator, description="score"),  # type: ignore[attr-defined]
            own=home.partition(".")[0] == "transformers",
        )

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """The Trainer's learning-rate schedule, over the planned steps."""
        callback = self._pruning()
        if callback.sampler.epoch_length == "shrink":
            num_training_steps = callback.steps_of(self.args)  # type: ignore[attr-defined]
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc, no-any-return]

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the pruning state along with the optimizer."""
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is not None:
            self._pruning().resume(checkpoint)
