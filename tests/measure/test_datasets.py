"""Datasets of every kind that have a length and an index can be measured, pruned and trained on."""

from collections import UserDict, namedtuple
from functools import partial

import datasets
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, random_split

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback, anneal

Pair = namedtuple("Pair", ["x", "y"])


class Items(Dataset):
    """Samples in a form of one's own."""

    def __init__(self, base, form):
        self.base, self.form = base, form

    def __len__(self):
        return len(self.base)

    def __getitem__(self, index):
        assert isinstance(index, int)
        return self.form(*self.base[index])


def hugging_face(digits):
    x, y = digits[:90]
    table = datasets.Dataset.from_dict({"input": x.numpy(), "labels": y.numpy()})
    return table.with_format("torch")


KINDS = {
    "tensors": lambda d: Subset(d, range(90)),
    "subset of a subset": lambda d: Subset(Subset(d, range(10, 190)), range(0, 180, 2)),
    "concatenation": lambda d: ConcatDataset([Subset(d, range(30)), Subset(d, range(40, 100))]),
    "split": lambda d: random_split(Subset(d, range(120)), [90, 30])[0],
    "mappings": lambda d: Items(Subset(d, range(90)), lambda x, y: {"input": x, "labels": y}),
    "lists": lambda d: Items(Subset(d, range(90)), lambda x, y: [x, int(y)]),
    "named tuples": lambda d: Items(Subset(d, range(90)), Pair),
    "Hugging Face": hugging_face,
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_datasets(kind, digits, model):
    data = KINDS[kind](digits)
    sampler = InfluencePrunedSampler(data)
    loader = DataLoader(data, 16, sampler=sampler)
    pruner = InfluencePruner(
        data, budget=Budget(count=30), solver=partial(anneal, moves=5000), progress=False
    )
    pruning = PruningCallback(sampler, pruner, warmup_epochs=1)
    seen = []
    for epoch in range(2):
        for batch in loader:
            seen.append(batch["labels"] if isinstance(batch, dict) else batch[1])
        pruning.on_epoch_end(epoch, model)
    kept = sampler.kept.tolist()
    assert len(kept) == 60

    def label(item):
        return int(item["labels"] if isinstance(item, dict) else item[1])

    labels = torch.cat(seen[-4:])
    assert sorted(labels.tolist()) == sorted(label(data[i]) for i in kept)
    # The same samples as tensors lead to the same selection.
    form = [data[i] for i in range(90)]
    x = torch.stack([d["input"] if isinstance(d, dict) else d[0] for d in form])
    plain = torch.utils.data.TensorDataset(x, torch.tensor([label(d) for d in form]))
    again = InfluencePruner(
        plain, budget=Budget(count=30), solver=partial(anneal, moves=5000), progress=False
    )
    assert again.select(model).kept.tolist() == kept


def test_batches_that_are_mappings_of_another_kind(digits, model):
    """As tokenizers make them: not dicts, but mappings."""
    data = Items(Subset(digits, range(90)), lambda x, y: {"input": x, "labels": y})

    def collate(items):
        return UserDict(torch.utils.data.default_collate(items))

    pruner = InfluencePruner(
        data, budget=Budget(count=30), solver=partial(anneal, moves=5000), progress=False,
        collate_fn=collate,
    )  # fmt: skip
    assert len(pruner.select(model).kept) == 60
