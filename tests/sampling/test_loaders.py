import inspect

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from prunesampler import InfluencePrunedSampler, replace_sampler

DATA = TensorDataset(torch.arange(20))


def collate(items):
    return torch.stack([item[0] for item in items])


def test_every_other_setting_is_kept():
    settings = {
        "dataset": DATA, "batch_size": 3, "num_workers": 2, "collate_fn": collate,
        "pin_memory": True, "drop_last": True, "timeout": 5.0, "worker_init_fn": print,
        "multiprocessing_context": "spawn", "generator": torch.Generator(), "prefetch_factor": 3,
        "persistent_workers": True, "in_order": False, "pin_memory_device": "",
    }  # fmt: skip
    left_out = {"self", "shuffle", "sampler", "batch_sampler"}
    assert set(settings) == set(inspect.signature(DataLoader.__init__).parameters) - left_out
    loader = DataLoader(shuffle=True, **settings)
    sampler = InfluencePrunedSampler(DATA)
    new = replace_sampler(loader, sampler)
    for name in settings:
        assert getattr(new, name) == getattr(loader, name), name
    assert new.sampler is sampler


def test_the_new_loader_follows_the_sampler():
    sampler = InfluencePrunedSampler(DATA)
    loader = replace_sampler(DataLoader(DATA, 4, shuffle=True), sampler)
    sampler.restrict(range(6))
    assert sorted(torch.cat([b[0] for b in loader]).tolist()) == list(range(6))
    unbatched = replace_sampler(DataLoader(DATA, None), sampler)
    assert sorted(int(item[0]) for item in unbatched) == list(range(6))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class MyLoader(DataLoader):
    pass


class MyBatches(BatchSampler):
    pass


@pytest.mark.parametrize(
    ("loader", "error", "message"),
    [
        (DataLoader(Stream()), TypeError, "Stream is an IterableDataset"),
        (MyLoader(DATA), TypeError, "MyLoader is a subclass"),
        (
            DataLoader(DATA, batch_sampler=MyBatches(RandomSampler(DATA), 2, False)),
            TypeError, "own batch sampler, MyBatches",
        ),
        (
            DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 2, False)),
            TypeError, "own batch sampler",
        ),
        (DataLoader(DATA, sampler=SubsetRandomSampler([1])), ValueError, "own SubsetRandomSampler"),
        (
            DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 20, 20)),
            ValueError, "own WeightedRandomSampler",
        ),
        (
            DataLoader(DATA, sampler=RandomSampler(DATA, replacement=True)),
            ValueError, "draws with replacement",
        ),
        (DataLoader(range(7)), ValueError, "has 7 samples, the sampler's 20"),
        (DataLoader(DATA, 30, drop_last=True), ValueError, "fewer than the batch of 30"),
    ],
)  # fmt: skip
def test_loaders_that_cannot_be_rebuilt(loader, error, message):
    with pytest.raises(error, match=message):
        replace_sampler(loader, InfluencePrunedSampler(DATA))


def test_dropping_the_last_batch_makes_the_sampler_refuse_too_few():
    sampler = InfluencePrunedSampler(DATA)
    replace_sampler(DataLoader(DATA, 8, drop_last=True), sampler)
    with pytest.raises(ValueError, match="batch of 8"):
        sampler.restrict(range(7))
