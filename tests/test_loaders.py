import inspect
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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
from prunesampler.loaders import Grid, same_item, scoring_loader, to_device

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


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
def test_ranks_take_whole_batches_of_one_grid(n, batch_size, ranks):
    grids = [Grid(n, batch_size, rank, ranks) for rank in range(ranks)]
    alone = list(Grid(n, batch_size))
    batches = sorted(batch for grid in grids for batch in grid)
    assert batches == alone
    assert [i for batch in alone for i in batch] == list(range(n))
    for grid in grids:
        assert len(list(grid)) == len(grid)
        assert grid.indices().tolist() == [i for batch in grid for i in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_scoring_reads_in_order_and_draws_no_global_random_numbers(workers):
    state = torch.get_rng_state()
    loader = scoring_loader(DATA, Grid(20, 6, 1, 2), num_workers=workers, collate_fn=None)
    assert torch.cat([b[0] for b in loader]).tolist() == [*range(6, 12), *range(18, 20)]
    assert torch.equal(torch.get_rng_state(), state)


def test_moving_batches():
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.ones(1)], "b": (Pair(torch.ones(1), "text"), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["b"][0].x.device.type == "meta"
    assert moved["b"][0].y == "text"
    assert moved["b"][1] == 3


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((torch.ones(2), 1), (torch.ones(2), 1), True),
        ((torch.ones(2), 1), (torch.zeros(2), 1), False),
        ({"x": np.ones(2)}, {"x": np.zeros(2)}, False),
        ({"x": [1.0, "a"]}, {"x": [1.0, "b"]}, False),
        (float("nan"), float("nan"), True),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), True),
        (torch.ones(2, requires_grad=True), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2, dtype=torch.int8), torch.zeros(2, dtype=torch.int8), False),
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.array(["a"]), np.array(["b"]), False),
        (object(), object(), True),  # not judged
    ],
)
def test_comparing_items(first, second, same):
    assert same_item(first, second) is same
