"""Wrong uses, and what each of them hears: the value, the reason and the way out."""

import re
import warnings
from functools import partial

import pytest
import torch
from accelerate import Accelerator
from lightning.pytorch import LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import (
    Budget,
    Constraints,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
    Selection,
    anneal,
    replace_sampler,
)
from prunesampler.base.files import pack_state, unpack_state
from prunesampler.integrations.common import require
from prunesampler.integrations.lightning import PruningCallback as LightningCallback

quick = partial(anneal, moves=2_000)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class Kit:
    """What a user has at hand."""

    def __init__(self, digits, model):
        self.data, self.model = digits, model
        self.sampler = InfluencePrunedSampler(digits)
        self.loader = DataLoader(digits, 16, shuffle=True)

    def pruner(self, data=None, budget=None, **options):
        budget = budget or Budget(fraction=0.4)
        return InfluencePruner(
            data or self.data, budget=budget, solver=quick, progress=False, **options
        )

    def callback(self, sampler=None, **options):
        options = {"warmup_epochs": 1, **options}
        return PruningCallback(sampler or self.sampler, self.pruner(), **options)

    def state(self, **changes):
        return {**self.callback().state_dict(), **changes}

    def sampler_state(self, **changes):
        return {**self.sampler.state_dict(), **changes}

    def run(self, callback, epochs=3, *, iterate=True, order=None):
        for epoch in range(epochs):
            callback.sampler.set_epoch(epoch if order is None else order[epoch])
            if iterate:
                list(callback.sampler)
            callback.on_epoch_end(epoch, self.model)

    def not_finite(self):
        x, y = (t.clone() for t in self.data.tensors)
        x[17] = float("nan")
        return TensorDataset(x, y)

    def watched(self, **what):
        callback = self.callback(epochs=4)
        callback.watch(**what)
        return callback

    def long_schedule(self):
        optimizer = torch.optim.SGD(self.model.parameters(), 0.1)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4 * 13)
        callback = self.watched(scheduler=scheduler)
        for epoch in range(2):
            optimizer.step()
            for _ in range(-(-len(self.sampler) // 16)):
                scheduler.step()
            list(self.sampler)
            callback.on_epoch_end(epoch, self.model)

    def lightning(self, trainer=None, **options):
        sampler = InfluencePrunedSampler(self.data, **options)
        callback = LightningCallback(sampler, self.pruner(), warmup_epochs=1)
        trainer = LightningTrainer(
            **{"max_epochs": 2, **(trainer or {})}, accelerator="cpu", callbacks=[callback], logger=False,
            enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        )  # fmt: skip
        trainer.fit(Linear(), DataLoader(self.data, 16, sampler=sampler))


class Linear(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, number):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Batches(BatchSampler):
    """A batch sampler of one's own."""


class Augmented(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + torch.rand(1), label


ERRORS = {
    # samplers and loaders
    "a stream": (TypeError, "Stream is not a map-style dataset",
        lambda k: InfluencePrunedSampler(Stream())),
    "a loader as dataset": (TypeError, "pass the dataset itself, not a loader",
        lambda k: InfluencePruner(k.loader, budget=Budget(count=1))),
    "floors that leave too little, before anything is measured": (
        ValueError, "but min_per_class=20 keeps 197 in 10 classes, which lets at most 3 go",
        lambda k: k.pruner(budget=Budget(fraction=0.4, min_per_class=20), labels=k.data.tensors[1])),
    "a sample that must stay and go, before anything is measured": (
        ValueError, "sample 3 must be kept and must be pruned",
        lambda k: k.pruner(constraints=Constraints(keep=[3], prune=[2, 3]))),
    "an empty dataset": (ValueError, "is empty; there is nothing to choose from",
        lambda k: InfluencePrunedSampler([])),
    "a rank that is not there": (ValueError, "rank=2 of num_replicas=2",
        lambda k: InfluencePrunedSampler(k.data, num_replicas=2, rank=2)),
    "keeping nothing": (ValueError, "no sample would be kept",
        lambda k: k.sampler.restrict([])),
    "a mask": (TypeError, r"mask.nonzero\(\).flatten\(\)",
        lambda k: k.sampler.restrict(torch.ones(200, dtype=torch.bool))),
    "an index twice": (ValueError, "hold 3 more than once",
        lambda k: k.sampler.restrict([1, 3, 3])),
    "an index out of range": (ValueError, "run from 5 to 200, but the dataset has indices 0 to 199",
        lambda k: k.sampler.restrict([5, 200])),
    "a selection of another dataset": (ValueError, "the selection is of 100 samples",
        lambda k: k.sampler.restrict(k.pruner(Subset(k.data, range(100))).select(k.model))),
    "a weighted sampler": (ValueError, "has its own WeightedRandomSampler, which would be lost",
        lambda k: replace_sampler(
            DataLoader(k.data, 16, sampler=WeightedRandomSampler([1.0] * 200, 200)), k.sampler)),
    "a batch sampler of one's own": (TypeError, "has its own batch sampler, Batches",
        lambda k: replace_sampler(
            DataLoader(k.data, batch_sampler=Batches(k.sampler, 16, False)), k.sampler)),
    "a loader of another kind": (TypeError, "StatefulDataLoader is a subclass of DataLoader",
        lambda k: replace_sampler(StatefulDataLoader(k.data, 16), k.sampler)),
    "a prepared loader": (TypeError, "before accelerator.prepare",
        lambda k: replace_sampler(Accelerator(cpu=True).prepare(k.loader), k.sampler)),
    "a loader of other data": (ValueError, "the loader's dataset has 50 samples",
        lambda k: replace_sampler(DataLoader(Subset(k.data, range(50))), k.sampler)),
    "a loader that would be empty": (ValueError, "fewer than the batch of 128 in a loader with drop_last",
        lambda k: (replace_sampler(DataLoader(k.data, 128, drop_last=True), k.sampler),
                   k.callback())),
    # budgets and pruners
    "everything": (ValueError, "which lets at most",
        lambda k: k.pruner(budget=Budget(count=199)).select(k.model)),
    "a negative epsilon": (ValueError, "epsilon",
        lambda k: Budget(epsilon=-1.0)),
    "two budgets": (ValueError, "exactly one of",
        lambda k: Budget(fraction=0.4, count=3)),
    "a number as budget": (TypeError, "such as Budget\\(fraction=0.4\\), got 0.4",
        lambda k: InfluencePruner(k.data, budget=0.4)),
    "torch's own loss": (TypeError, "use CrossEntropy\\(\\)",
        lambda k: k.pruner(losses=torch.nn.CrossEntropyLoss())),
    "a head that is not there": (ValueError, "nowhere",
        lambda k: k.pruner(head="nowhere").select(k.model)),
    "a sample that is not finite": (ValueError, r"not finite for samples \[17\]",
        lambda k: k.pruner(k.not_finite()).select(k.model)),
    # callbacks
    "score sets of another length": (ValueError, "score_dataset has 100 samples, the sampler's",
        lambda k: PruningCallback(k.sampler, k.pruner(Subset(k.data, range(100))))),
    "no warm-up": (ValueError, "warmup_epochs must be at least 1, got 0",
        lambda k: k.callback(warmup_epochs=0)),
    "last epochs of a run without end": (ValueError, "final_full_epochs=2 with epochs=None",
        lambda k: k.callback(final_full_epochs=2)),
    "a plan for other epochs": (ValueError, "epochs=7, but the callback was made for epochs=9",
        lambda k: k.callback(epochs=9).planned_steps(epochs=7, batch_size=16)),
    "a plan without batches": (ValueError, "epoch 1 would have no batch: 120 samples in batches of 150",
        lambda k: k.callback().planned_steps(epochs=3, batch_size=150, drop_last=True)),
    "sharing out twice under accelerate": (ValueError, "accelerate shares out the batches itself",
        lambda k: k.callback(
            InfluencePrunedSampler(k.data, num_replicas=2), accelerator=Accelerator(cpu=True))),
    "sharing out twice under Lightning": (ValueError, "leave num_replicas at 1",
        lambda k: k.lightning(num_replicas=2)),
    "validation after more batches than there will be": (ValueError, "val_check_interval=10 is more than the 8 batches",
        lambda k: k.lightning({"val_check_interval": 10})),
    # states and files
    "a state of another dataset": (ValueError, "of a dataset of 9 samples, this one has 200",
        lambda k: k.callback().load_state_dict(k.state(sampler=k.sampler_state(n=9)))),
    "a state of another version": (ValueError, "has version 99, this release reads 1",
        lambda k: k.callback().load_state_dict(k.state(version=99))),
    "a sampler's state of another version": (ValueError, "state of InfluencePrunedSampler has version 99",
        lambda k: k.sampler.load_state_dict(k.sampler_state(version=99))),
    "a state of something else": (ValueError, "not a state of PruningCallback: .* missing",
        lambda k: k.callback().load_state_dict(k.sampler_state())),
    "a state of indices that are not there": (ValueError, "run from 0 to 1000, but the dataset",
        lambda k: k.callback().load_state_dict(
            k.state(sampler=k.sampler_state(kept=torch.tensor([0, 1000]))))),
    "a file of something else": (ValueError, "not a file of prunesampler.state",
        lambda k: unpack_state(b"PK..")),
    "a selection instead of a state": (ValueError, "'prunesampler.selection' version 2; this release reads",
        lambda k: unpack_state(k.pruner().select(k.model).to_bytes())),
    "a state instead of a selection": (ValueError, "'prunesampler.state' version 1",
        lambda k: Selection.from_bytes(pack_state(k.callback().state_dict()))),
    "a file that is cut off": (ValueError, "not a file of prunesampler.state",
        lambda k: unpack_state(pack_state(k.callback().state_dict())[:-9])),
    # frameworks
    "a framework that is not installed": (ImportError, r'pip install "prunesampler\[nothing\]"',
        lambda k: require(("no_such_framework",), "1.0", "nothing")),
    "a framework that is too old": (ImportError, "is too old: .* needs 999.0 or newer",
        lambda k: require(("accelerate",), "999.0", "nothing")),
}  # fmt: skip

WARNINGS = {
    "a loader with another sampler": ("nobody iterated the sampler in epoch 1",
        lambda k: k.run(k.callback(), iterate=False)),
    "resuming without set_epoch": ("epoch 1 ran in the order of epoch 0",
        lambda k: k.run(k.callback(), order=[0, 0, 1])),
    "a batch larger than the kept set": ("the 120 kept samples are fewer than a batch of 128",
        lambda k: k.run(k.watched(loader=DataLoader(k.data, 128, sampler=k.sampler)))),
    "a schedule from the full loader": ("is sized for 52 steps, this run makes 37",
        lambda k: k.long_schedule()),
    "a score set in another order": ("has label .* in the training set",
        lambda k: k.run(PruningCallback(
            k.sampler, k.pruner(TensorDataset(*(t.flip(0) for t in k.data.tensors))),
            warmup_epochs=1))),
    "scoring augmented images": ("gives another item 0 each time it is read",
        lambda k: k.pruner(Augmented(*k.data.tensors)).select(k.model)),
    "an Accelerator that the callback does not know": ("there is an Accelerator, but the callback",
        lambda k: (Accelerator(cpu=True), k.callback().on_epoch_end(0, k.model))),
    "a run that ends with the warm-up": ("nothing will be pruned",
        lambda k: k.callback(epochs=1)),
    "a plan that cannot be known": ("planned_steps is an upper bound",
        lambda k: PruningCallback(k.sampler, k.pruner(budget=Budget(epsilon=1.0))).planned_steps(
            epochs=9, batch_size=16)),
}  # fmt: skip


@pytest.fixture
def kit(few_digits, model):
    return Kit(few_digits, model)


@pytest.mark.parametrize("use", ERRORS)
def test_errors(use, kit):
    error, message, work = ERRORS[use]
    before = kit.sampler.kept
    with pytest.raises(error, match=message):
        work(kit)
    assert torch.equal(kit.sampler.kept, before)  # nothing is half done


@pytest.mark.parametrize("use", WARNINGS)
def test_warnings(use, kit):
    message, work = WARNINGS[use]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        work(kit)
    verdict = "no better chosen than at random"  # true here, and not what is looked for
    said = [w for w in caught if w.category is UserWarning and verdict not in str(w.message)]
    (said,) = said
    assert re.search(message, str(said.message))


def test_there_are_at_least_forty():
    assert len(ERRORS) + len(WARNINGS) >= 40
