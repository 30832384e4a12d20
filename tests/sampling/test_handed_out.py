"""The batches that are expected are those that loaders yield, whoever shares them out."""

import inspect
import random
import time

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SkipBatchSampler, skip_first_batches
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import InfluencePrunedSampler
from prunesampler.sampling.handed_out import (
    HandedOut,
    Misaligned,
    batches_of,
    check_drawn,
    draws_from_ours,
)


def sampler_of(n, kept=None, **options):
    sampler = InfluencePrunedSampler(range(n), **options)
    if kept is not None:
        sampler.restrict(range(kept))
    return sampler


def yielded(loader):
    return [batch.tolist() for batch in loader]


def expected(loader, sampler):
    return batches_of(loader, sampler.indices(sampler.epoch))


@pytest.mark.parametrize("kind", [DataLoader, StatefulDataLoader])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"epoch_length": "constant"}, {"num_replicas": 3, "rank": 2}, {"shuffle": False}],
)
def test_plain_loaders(kind, workers, drop_last, options):
    sampler = sampler_of(22, 17, **options)
    loader = kind(range(22), 4, sampler=sampler, num_workers=workers, drop_last=drop_last)
    handed = HandedOut(sampler, loader)
    for _ in range(2):
        wanted, found = expected(loader, sampler), []
        for batch in loader:
            found.append(handed.next(len(batch)))
            assert found[-1] == batch.tolist()
        assert found == wanted


@pytest.mark.parametrize("n", [1, 5, 16, 22, 24, 31])
@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("options", [{}, {"even_batches": False}, {"split_batches": True}])
@pytest.mark.parametrize("drop_last", [False, True])
def test_accelerate_shares_out_batches(n, world, options, drop_last):
    if options.get("split_batches") and world == 3:
        world = 4
    for rank in range(world):
        sampler = sampler_of(40, n)
        batches = BatchSampler(sampler, 4, drop_last)
        shard = BatchSamplerShard(batches, world, rank, **options)
        loader = DataLoader(range(40), batch_sampler=shard)
        wanted = expected(loader, sampler)
        sampler.set_epoch(sampler.epoch)
        assert yielded(loader) == wanted
        skipping = DataLoader(range(40), batch_sampler=SkipBatchSampler(shard, 2))
        assert expected(skipping, sampler) == wanted[2:] == yielded(skipping)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_lightning_shares_out_samples(rank, drop_last):
    sampler = sampler_of(40, 23)
    wrapper = DistributedSamplerWrapper(
        sampler, num_replicas=2, rank=rank, shuffle=False, drop_last=drop_last
    )
    loader = DataLoader(range(40), 4, sampler=wrapper)
    handed = HandedOut(sampler, loader)
    for epoch in range(2):
        wrapper.set_epoch(epoch)  # as Lightning does
        wanted = expected(loader, sampler)
        assert [handed.next(len(batch)) for batch in loader] == wanted


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize(
    ("kept", "epoch", "message"),
    [(9, 0, "with 40 samples, and epoch 0 with 9 began"), (40, 1, "of epoch 0 .* and epoch 1")],
)
def test_a_wrapper_of_lightning_that_is_outdated(drop_last, kept, epoch, message):
    sampler = sampler_of(40)
    options = {"num_replicas": 2, "rank": 1, "drop_last": drop_last}
    handed = HandedOut(
        sampler, DataLoader(range(40), 4, sampler=DistributedSamplerWrapper(sampler, **options))
    )
    sampler.restrict(range(kept))  # Lightning then makes the loader again, of which nobody told
    again = DistributedSamplerWrapper(sampler, **options)
    again.set_epoch(epoch)
    for batch in DataLoader(range(40), 4, sampler=again):
        with pytest.raises(Misaligned, match=message):
            handed.next(len(batch))


def test_a_loader_that_skips_what_was_done_before():
    sampler = sampler_of(22)
    loader = skip_first_batches(DataLoader(range(22), 4, sampler=sampler), 2)
    handed = HandedOut(sampler, loader)
    for batch in loader:
        assert handed.next(len(batch)) == batch.tolist()


def test_a_loader_that_is_told_of_later():
    sampler = sampler_of(22)
    handed = HandedOut(sampler)
    assert handed.steps is None
    loader = DataLoader(range(22), 4, sampler=sampler, num_workers=2)
    batches = iter(loader)  # the pass begins before anybody knows the loader, as in Lightning
    handed.follow(loader)
    for batch in batches:
        assert handed.next(len(batch)) == batch.tolist()


def test_batches_that_do_not_come_as_they_were_given_out():
    sampler = sampler_of(22)
    loader = DataLoader(range(22), 4, sampler=sampler)
    handed = HandedOut(sampler, loader)
    with pytest.raises(Misaligned, match="before a pass"):
        handed.next(4)
    batches = iter(loader)
    next(batches)
    with pytest.raises(Misaligned, match="8 rows for a batch of 4"):
        handed.next(8)
    batches = iter(loader)
    next(batches)
    handed.next(4)
    with pytest.raises(Misaligned, match="had not given out yet"):
        handed.next(4)
    batches = iter(loader)
    next(batches)
    handed.next(4)
    next(batches)
    next(batches)
    with pytest.raises(Misaligned, match="a batch that the layer was not given"):
        handed.next(4)
    for batch in loader:
        handed.next(len(batch))
    with pytest.raises(Misaligned, match="more often than the loader has batches"):
        handed.next(4)


class Own(BatchSampler):
    """A batch sampler of somebody's own."""


class Endless:
    """Gives the same batches again and again, as infinite loaders have it."""

    def __init__(self, sampler):
        self.sampler = sampler

    def __iter__(self):
        while True:
            yield from iter(self.sampler)


class DataLoaderDispatcher(DataLoader):
    pass


def test_loaders_that_are_refused_by_name():
    sampler = sampler_of(22)
    batches = BatchSampler(sampler, 4, False)
    data = range(22)
    cases = [
        (DataLoader(data, 4, shuffle=True), "draws from a RandomSampler"),
        (DataLoader(data, 4), "draws from a SequentialSampler"),
        (DataLoader(data, 4, sampler=sampler_of(22)), "from another InfluencePrunedSampler"),
        (
            DataLoader(data, batch_sampler=Own(sampler, 4, False)),
            "made by a Own of test_handed_out",
        ),
        (DataLoader(data, batch_sampler=Endless(batches)), "a Endless of test_handed_out"),
        (DataLoader(data, batch_size=None, sampler=sampler), "no batches of its own"),
        (DataLoaderDispatcher(data, 4, sampler=sampler), "use dispatch_batches=False"),
        (object(), "draws from a NoneType"),
        ([[1, 2], [3]], "draws from a NoneType"),
    ]
    if "in_order" in inspect.signature(DataLoader).parameters:
        cases.append(
            (
                DataLoader(data, 4, sampler=sampler, num_workers=1, in_order=False),
                "leave it at True",
            )
        )
    for loader, message in cases:
        with pytest.raises(ValueError, match=message):
            check_drawn(sampler, loader)
    check_drawn(sampler, DataLoader(data, batch_sampler=batches))


def test_others_loaders():
    multi = pytest.importorskip("timm.data.loader")
    sampler = sampler_of(22)
    endless = multi.MultiEpochsDataLoader(range(22), 4, sampler=sampler)
    with pytest.raises(ValueError, match="made by a _RepeatSampler of timm"):
        check_drawn(sampler, endless)
    assert draws_from_ours(endless)
    assert not draws_from_ours(DataLoader(range(22), sampler=SequentialSampler(range(22))))


def test_replaying_takes_no_random_numbers_and_changes_no_state():
    sampler = sampler_of(22)
    loader = DataLoader(range(22), 4, sampler=sampler)
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    before = (sampler.state_dict(), sampler.clock.begun, vars(loader.batch_sampler).copy())
    expected(loader, sampler)
    check_drawn(sampler, loader)
    assert (sampler.state_dict(), sampler.clock.begun, vars(loader.batch_sampler)) == before
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert states[2] == np.random.get_state()[1].tolist()


def test_a_pass_over_a_large_dataset_is_replayed_in_moments():
    sampler = sampler_of(200_000)
    loader = DataLoader(range(200_000), 256, sampler=sampler)
    handed = HandedOut(sampler, loader)
    next(iter(loader))
    begun = time.process_time()
    handed.next(256)
    assert time.process_time() - begun < 2
