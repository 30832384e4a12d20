import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
from hostile import Flags, Lazy, OwnRandom, Shards, Views, WorkersOnly
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset, default_collate

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, PruningCallback, anneal
from prunesampler.measure.reading import Grid, Reading, spread
from prunesampler.measure.undisturbed import undisturbed

quick = partial(anneal, moves=1_000)
pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")
DATA = TensorDataset(torch.arange(20))


@given(st.integers(1, 50), st.integers(1, 9), st.integers(1, 5))
def test_ranks_take_whole_batches_of_one_grid(n, batch_size, ranks):
    grids = [Grid(range(n), batch_size, rank, ranks) for rank in range(ranks)]
    alone = list(Grid(range(n), batch_size))
    batches = sorted(batch for grid in grids for batch in grid)
    assert batches == alone
    assert [i for batch in alone for i in batch] == list(range(n))
    for grid in grids:
        assert len(list(grid)) == len(grid)
        assert grid.places().tolist() == [i for batch in grid for i in batch]


@pytest.mark.parametrize("workers", [0, 2])
def test_measuring_reads_in_order_and_draws_no_global_random_numbers(workers):
    state = torch.get_rng_state()
    with Reading(num_workers=workers).batches(DATA, Grid(range(20), 6, 1, 2)) as batches:
        assert torch.cat([b[0] for b in batches]).tolist() == [*range(6, 12), *range(18, 20)]
    items = Reading(num_workers=workers).items(DATA, [3, 3, 19])
    assert [int(item[0]) for item in items] == [3, 3, 19]
    assert torch.equal(torch.get_rng_state(), state)


@given(st.integers(1, 10**9), st.integers(1, 9))
def test_spread_indices_are_within_the_dataset(size, count):
    places = spread(size, count)
    assert places == sorted(set(places))
    assert places[0] == 0
    assert places[-1] == size - 1 or count == 1
    assert len(places) == min(size, count)


def test_spread_over_a_set_too_large_for_float32():
    assert spread(20_000_000, 256)[-1] == 19_999_999


def test_settings_of_a_loader():
    def together(items):
        return default_collate(items)

    loader = DataLoader(DATA, 7, num_workers=2, collate_fn=together, worker_init_fn=print)
    reading = Reading.like(loader)
    assert (reading.batch_size, reading.num_workers, reading.collate_fn) == (7, 2, together)
    assert reading.worker_init_fn is print
    pruner = InfluencePruner(DATA, budget=Budget(count=3), like=loader, batch_size=5)
    assert (pruner.reading.batch_size, pruner.reading.collate_fn) == (5, together)
    assert InfluencePruner(DATA, budget=Budget(count=3)).reading == Reading()
    with pytest.raises(TypeError, match="like= takes a DataLoader, got TensorDataset"):
        InfluencePruner(DATA, budget=Budget(count=3), like=DATA)


@pytest.fixture
def file(tmp_path):
    """Rows that can be told apart."""
    rows = np.random.default_rng(0).normal(size=(120, 64)).astype(np.float32)
    rows.tofile(tmp_path / "rows")
    return tmp_path / "rows", torch.from_numpy(rows)


@pytest.mark.parametrize("kind", [Lazy, Shards])
@pytest.mark.parametrize("workers", [0, 2])
def test_no_file_is_shared_with_the_workers_of_training(kind, workers, file):
    path, rows = file
    train = kind(path, 64, 120)
    sampler = InfluencePrunedSampler(train)
    loader = DataLoader(train, 8, sampler=sampler, num_workers=2)
    pruner = InfluencePruner(
        train, budget=Budget(fraction=0.4), solver=quick, progress=False, num_workers=workers
    )
    callback, model = PruningCallback(sampler, pruner, warmup_epochs=2), nn.Linear(64, 3)
    for epoch in range(3):
        order = sampler.indices(epoch)
        seen = torch.cat([x for x, _ in loader])
        assert torch.equal(seen, rows[order]), epoch
        callback.on_epoch_end(epoch, model)
        assert train.file is None
        assert not getattr(train, "files", None)


def test_flags_beside_files_are_put_back_with_them(file):
    path, rows = file
    data = Flags(path, 64, 120)
    with undisturbed(data):
        assert torch.equal(data[7][0], rows[7])
        assert data.opened == [False, True]
    assert data.opened == [False, False]
    assert data.files == [None, None]
    assert data.store.row is None
    assert not data.seen
    assert torch.equal(data[7][0], rows[7])


def test_many_parts_that_open_files(file):
    path, _ = file
    whole = ConcatDataset([Lazy(path, 64, 1) for _ in range(100)])
    with undisturbed(whole):
        assert len([whole[index] for index in range(100)]) == 100
    assert not any(part.opened for part in whole.datasets)


class Slots:
    __slots__ = ("bits", "missing")

    def __init__(self):
        self.bits = np.random.PCG64(3)

    def __getattr__(self, name):
        return getattr(self, name)  # recurses


def test_odd_parts_of_datasets(file):
    data = Views(torch.randn(5, 2), torch.arange(5))
    data.slots, data.system = Slots(), random.SystemRandom()
    data.itself = data
    before = data.slots.bits.state
    with undisturbed(data):
        data.slots.bits.random_raw()
    assert data.slots.bits.state == before


def configure(worker):
    """As torch's documentation sets up the workers' copies of a dataset."""
    del worker
    torch.utils.data.get_worker_info().dataset.scale = 1.0


class Configured(Views):
    scale = None

    def __getitem__(self, index):
        x, y = super().__getitem__(index)
        return x * self.scale, y


def test_workers_that_configure_the_dataset(few_digits, model):
    data = Configured(*few_digits.tensors)
    loader = DataLoader(data, 16, num_workers=1, worker_init_fn=configure)
    pruner = InfluencePruner(
        data, budget=Budget(fraction=0.4), solver=quick, progress=False, like=loader
    )
    pruner.check(model)
    assert len(pruner.select(model).pruned) == 80


def test_loaders_that_do_not_batch(few_digits, model):
    loader = DataLoader(few_digits, batch_size=None)
    pruner = InfluencePruner(
        few_digits, budget=Budget(fraction=0.4), solver=quick, progress=False, like=loader
    )
    assert pruner.reading.collate_fn is default_collate
    assert len(pruner.select(model).pruned) == 80


def losses(measured, epochs=3):
    """Of a run over a dataset that draws its own random numbers, with or without measuring."""
    torch.manual_seed(0)
    data, model = OwnRandom(), nn.Linear(8, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sampler = InfluencePrunedSampler(data)
    pruner = InfluencePruner(data, budget=Budget(fraction=0.4), solver=quick, progress=False)
    callback, found = PruningCallback(sampler, pruner, warmup_epochs=9) if measured else None, []
    for epoch in range(epochs):
        for x, y in DataLoader(data, 16, sampler=sampler):
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        if callback:
            callback.on_epoch_end(epoch, model)
            pruner.select(model)
    return found


@pytest.mark.filterwarnings("ignore:score_dataset gives another item")
def test_a_dataset_with_random_numbers_of_its_own_is_untouched_bitwise():
    assert losses(measured=True) == losses(measured=False)


def test_with_workers_the_main_process_reads_nothing(few_digits, model):
    data = WorkersOnly(few_digits)
    sampler = InfluencePrunedSampler(data)
    pruner = InfluencePruner(
        WorkersOnly(few_digits),
        budget=Budget(fraction=0.4), solver=quick, progress=False, num_workers=2,
    )  # fmt: skip
    pruner.check(model)
    callback = PruningCallback(sampler, pruner, warmup_epochs=1)
    assert callback.on_epoch_end(0, model) is not None
    callback.load_state_dict(callback.state_dict())
    with pytest.raises(AssertionError, match="read in the main process"):
        InfluencePruner(data, budget=Budget(count=3)).check(model)


def test_parts_of_composed_datasets_are_put_back(file):
    path, _ = file
    parts = [Lazy(path, 64, 60), Lazy(path, 64, 60)]
    whole = Subset(ConcatDataset(parts), range(0, 120, 2))
    with undisturbed(whole):
        first, last = whole[0], whole[59]
        assert all(part.opened for part in parts)
    assert not any(part.opened or part.file for part in parts)
    assert torch.equal(whole[0][0], first[0])
    assert torch.equal(whole[59][0], last[0])


def test_plain_data_that_reading_leaves_behind_stays():
    data = Views(torch.randn(5, 2), torch.arange(5))
    data.cache = None
    with undisturbed(data):
        data.cache = {"row": data[0]}
    assert data.reads == 1
    assert set(data.cache) == {"row"}


def test_generators_get_their_states_back():
    data = OwnRandom()
    wrapped = partial(lambda items, rng: items, rng=np.random.RandomState(3))
    before = copy.deepcopy((data.rng.bit_generator.state, wrapped.keywords["rng"].get_state()))
    with undisturbed([data, wrapped]):
        first = data[0][0]
        wrapped.keywords["rng"].rand()
    assert data.rng.bit_generator.state == before[0]
    assert np.array_equal(wrapped.keywords["rng"].get_state()[1], before[1][1])
    assert torch.equal(data[0][0], first)


def test_workers_are_gone_after_measuring(few_digits, model):
    pruner = InfluencePruner(
        few_digits, budget=Budget(fraction=0.4), solver=quick, progress=False, num_workers=1
    )
    pruner.select(model)
    assert not torch.multiprocessing.active_children()
