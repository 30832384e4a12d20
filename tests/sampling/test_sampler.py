import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from torchdata.stateful_dataloader import StatefulDataLoader

from prunesampler import Budget, InfluencePrunedSampler, Selection
from prunesampler.sampling.clock import EpochClock

kept_sets = st.integers(1, 60).flatmap(
    lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), min_size=1))
)


def sampler_of(n, kept=None, **options):
    sampler = InfluencePrunedSampler(range(n), **options)
    if kept is not None:
        sampler.restrict(sorted(kept))
    return sampler


@given(kept_sets, st.integers(0, 100), st.integers(0, 100))
def test_a_pass_is_a_permutation_of_the_kept_set_and_depends_on_seed_and_epoch_alone(case, seed, e):
    n, kept = case
    sampler, twin = sampler_of(n, kept, seed=seed), sampler_of(n, kept, seed=seed)
    list(twin)
    sampler.set_epoch(e)
    twin.set_epoch(e)
    order = list(sampler)
    assert sorted(order) == sorted(kept)
    assert len(order) == len(twin)
    assert order == list(twin)
    assert all(type(i) is int for i in order)


@given(kept_sets, st.integers(1, 5), st.sampled_from(["pad", "drop"]), st.booleans())
def test_ranks_share_the_kept_set_evenly(case, ranks, uneven, constant):
    n, kept = case
    length = "constant" if constant else "shrink"
    if uneven == "drop" and (n if constant else len(kept)) < ranks:
        return
    shards = [
        list(sampler_of(n, kept, num_replicas=ranks, rank=r, uneven=uneven, epoch_length=length))
        for r in range(ranks)
    ]
    assert len({len(shard) for shard in shards}) == 1
    drawn = list(itertools.chain(*shards))
    total = n if constant else len(kept)
    assert len(drawn) == (-(-total // ranks) if uneven == "pad" else total // ranks) * ranks
    assert set(drawn) <= kept
    counts = np.bincount(drawn, minlength=n)[sorted(kept)]
    assert counts.max() - counts.min() <= 1
    if uneven == "pad":
        assert set(drawn) == kept


def test_orders_differ_between_epochs_and_seeds():
    def order(seed, epoch):
        sampler = sampler_of(50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert len({order(seed, epoch) for seed in range(4) for epoch in range(4)}) == 16


def test_without_shuffling_the_order_is_ascending():
    sampler = sampler_of(6, [5, 1, 3], shuffle=False)
    assert list(sampler) == list(sampler) == [1, 3, 5]


def test_iterating_changes_nothing_but_the_epoch_of_finished_passes():
    sampler = sampler_of(10)
    global_state = torch.get_rng_state()
    half = list(itertools.islice(iter(sampler), 5))
    assert sampler.epoch == 0
    whole = list(sampler)
    assert whole[:5] == half
    assert sampler.epoch == 1
    assert list(sampler) != whole
    assert torch.equal(torch.get_rng_state(), global_state)


def test_an_epoch_set_meanwhile_stays():
    sampler = sampler_of(4)
    iterator = iter(sampler)
    next(iterator)
    sampler.set_epoch(7)
    list(iterator)
    assert sampler.epoch == 7
    sampler.set_epoch(7)
    sampler.set_epoch(2)
    assert sampler.epoch == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_restricting_takes_effect_with_the_next_pass(workers):
    sampler = sampler_of(40)
    loader = DataLoader(
        torch.arange(40), 4, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )
    batches = iter(loader)
    seen = [next(batches) for _ in range(3)]
    sampler.restrict(range(7))
    with pytest.warns(UserWarning, match="before the kept set changed went on with its last [1-9]"):
        seen += batches
    assert sorted(torch.cat(seen).tolist()) == list(range(40))
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(7))
    assert len(loader) == 2
    sampler.reset()
    assert len(loader) == 10


def test_constant_passes_are_as_long_as_the_dataset():
    sampler = sampler_of(10, [2, 4, 6], epoch_length="constant")
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 10
    assert sorted(drawn[:3]) == sorted(drawn[3:6]) == [2, 4, 6]


def test_kept_indices_of_any_kind():
    for kept in ({3, 1}, (3, 1), range(1, 4, 2), np.array([3, 1]), torch.tensor([3, 1])):
        sampler = sampler_of(5)
        sampler.restrict(kept)
        assert sampler.kept.tolist() == [1, 3]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_saved_with_the_last_partial_batch(workers):
    def loader():
        sampler = InfluencePrunedSampler(range(18), seed=3)
        return StatefulDataLoader(torch.arange(18), 4, sampler=sampler, num_workers=workers)

    first, second = loader(), loader()
    iterator = iter(first)
    for _ in range(5):
        next(iterator)
    second.load_state_dict(first.state_dict())
    rest = [batch.tolist() for batch in iterator]
    assert [batch.tolist() for batch in second] == rest == []
    assert [batch.tolist() for batch in second] == [batch.tolist() for batch in first]


def test_restricting_to_a_selection():
    sampler = sampler_of(5)
    selection = Selection(torch.tensor([0, 3]), 5, 0.0, 0.0, None, Budget(count=2))
    sampler.restrict(selection)
    assert sampler.kept.tolist() == [1, 2, 4]


def test_state_restores_the_order():
    before = sampler_of(20, range(0, 20, 3), seed=5)
    list(before)
    after = InfluencePrunedSampler(range(20))
    after.load_state_dict(before.state_dict())
    assert list(after) == list(before)
    assert set(before.state_dict()) == {"version", "n", "seed", "epoch", "kept"}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [1, 3, 4, 5])
def test_stateful_loader_resumes_in_the_middle_of_an_epoch(workers, stop):
    def loader():
        sampler = InfluencePrunedSampler(range(30), seed=3)
        return sampler, StatefulDataLoader(
            torch.arange(30), 4, sampler=sampler, num_workers=workers
        )

    sampler, first = loader()
    list(first)
    sampler.restrict(range(5, 25))
    iterator = iter(first)
    for _ in range(stop):
        next(iterator)
    state = first.state_dict()
    rest = [batch.tolist() for batch in iterator]
    following = [batch.tolist() for batch in first]

    resumed_sampler, second = loader()
    second.load_state_dict(state)
    assert [batch.tolist() for batch in second] == rest
    assert resumed_sampler.kept.tolist() == list(range(5, 25))
    assert [batch.tolist() for batch in second] == following


def test_a_position_of_another_pass_is_refused():
    state = iter(sampler_of(10)).state_dict()
    with pytest.raises(ValueError, match="in epoch 0 of 10 indices, this pass is epoch 0 of 4"):
        iter(sampler_of(10, range(4))).load_state_dict(state)
    iterator = iter(sampler_of(10))
    next(iterator)
    with pytest.raises(ValueError, match="position 0 lies behind"):
        iterator.load_state_dict(state)
    for wrong in ({"epoch": 0}, {"epoch": 0, "position": 99, "length": 10}):
        with pytest.raises(ValueError, match="not a position within a pass"):
            iter(sampler_of(10)).load_state_dict(wrong)


GOOD = sampler_of(10, range(5)).state_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 2}, "version 2, this release reads 1"),
        ({"n": 11}, "of 11 samples, this one has 10; resume with the dataset of the checkpoint"),
        ({"kept": torch.tensor([], dtype=torch.int64)}, "no sample would be kept"),
        ({"kept": torch.tensor([1, 10])}, "run from 1 to 10.*0 to 9"),
        ({"kept": torch.tensor([1, 1])}, "hold 1 more than once"),
        ({"epoch": -1}, "epoch must be a whole number of at least 0, got -1"),
        ({"seed": "x"}, "seed must be a whole number"),
    ],
)
def test_wrong_states_are_refused_and_change_nothing(changes, message):
    sampler = sampler_of(10, [1, 2])
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict({**GOOD, **changes})
    assert sampler.kept.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"\['kept'\] missing"):
        sampler.load_state_dict({k: v for k, v in GOOD.items() if k != "kept"})


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))


class NoLength:
    pass


@pytest.mark.parametrize(
    ("dataset", "options", "error", "message"),
    [
        (Stream(), {}, TypeError, "Stream is not a map-style dataset"),
        (NoLength(), {}, TypeError, "NoLength is not a map-style dataset"),
        (DataLoader(range(3)), {}, TypeError, "DataLoader is not.*not a loader or a stream"),
        ([], {}, ValueError, "the list is empty"),
        (range(5), {"rank": 1}, ValueError, "rank=1 of num_replicas=1"),
        (range(5), {"num_replicas": 0}, ValueError, "num_replicas=0"),
        (range(5), {"uneven": "both"}, ValueError, "'pad' or 'drop', got 'both'"),
        (range(5), {"epoch_length": "long"}, ValueError, "'shrink' or 'constant', got 'long'"),
        (
            range(2),
            {"num_replicas": 3, "uneven": "drop"},
            ValueError,
            "2 samples on num_replicas=3",
        ),
        (range(5), {"seed": -1}, ValueError, "seed must be a whole number.*-1"),
    ],
)
def test_wrong_arguments(dataset, options, error, message):
    with pytest.raises(error, match=message):
        InfluencePrunedSampler(dataset, **options)


@pytest.mark.parametrize(
    ("kept", "error", "message"),
    [
        ([], ValueError, "keep at least one"),
        ([5], ValueError, "run from 5 to 5.*0 to 4"),
        ([-1, 2], ValueError, "run from -1 to 2"),
        ([2, 2], ValueError, "2 more than once"),
        (torch.tensor([0.5]), TypeError, "torch.float32"),
        ("all", TypeError, "kept indices must be whole numbers, got 'all'"),
        (torch.ones(5, dtype=torch.bool), TypeError, r"mask.nonzero\(\)"),
        (torch.tensor([[1]]), TypeError, r"shape \(1, 1\)"),
        (
            Selection(torch.tensor([0]), 6, 0.0, 0.0, None, Budget(count=1)),
            ValueError, "of 6 samples, this sampler's dataset has 5",
        ),
    ],
)  # fmt: skip
def test_wrong_kept_sets_change_nothing(kept, error, message):
    sampler = sampler_of(5)
    with pytest.raises(error, match=message):
        sampler.restrict(kept)
    assert len(sampler) == 5


def test_fewer_kept_than_a_batch_is_refused_where_the_last_one_is_dropped():
    sampler = sampler_of(20, num_replicas=2)
    sampler.require_batch(8)
    sampler.restrict(range(16))
    with pytest.raises(
        ValueError, match="12 kept samples make 6 a rank, fewer than the batch of 8"
    ):
        sampler.restrict(range(12))


def test_frameworks_do_not_take_it_for_their_own():
    sampler = sampler_of(3)
    assert not isinstance(sampler, RandomSampler)
    assert not hasattr(sampler, "generator")


@settings(max_examples=10, deadline=None)
@given(kept_sets, st.integers(0, 100))
def test_positions_restore_any_place_of_a_pass(case, place):
    n, kept = case
    iterator = iter(sampler_of(n, kept))
    for _ in range(place % len(kept)):
        next(iterator)
    state = iterator.state_dict()
    twin = iter(sampler_of(n, kept))
    twin.load_state_dict(state)
    assert list(twin) == list(iterator)


def test_a_restored_sampler_takes_no_older_kept_set_until_it_is_settled():
    sampler = sampler_of(10, [1, 2, 3])
    older = sampler_of(10).state_dict()
    sampler.restore({**sampler.state_dict(), "epoch": 4}, 4)
    sampler.load_state_dict({**older, "epoch": 3})
    assert (sampler.epoch, sampler.kept.tolist()) == (4, [1, 2, 3])
    sampler.load_state_dict({**older, "epoch": 5})
    assert (sampler.epoch, sampler.kept.tolist()) == (5, [1, 2, 3])
    sampler.clock.settle()
    sampler.load_state_dict(older)
    assert (sampler.epoch, len(sampler)) == (0, 10)
    with pytest.raises(ValueError, match="missing"):
        sampler.restore({}, 1)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize(
    ("event", "epoch", "epoch_if_told"),
    [
        (lambda clock: clock.set(7), 7, 7),
        (lambda clock: clock.set(1), 1, 1),
        (lambda clock: clock.reach(7), 7, 3),
        (lambda clock: clock.reach(1), 3, 3),
        (lambda clock: clock.end(3), 4, 3),
        (lambda clock: clock.end(2), 3, 3),
        (lambda clock: clock.load(1), 1, 1),
        (lambda clock: (clock.hold(2), clock.load(2)), 2, 2),
        (lambda clock: (clock.hold(2), clock.load(1)), 3, 3),
        (lambda clock: (clock.hold(2), clock.settle(), clock.load(1)), 1, 1),
        (lambda clock: clock.restart(), 0, 0),
    ],
)
def test_the_truth_table_of_the_clock(told, event, epoch, epoch_if_told):
    clock = EpochClock()
    clock.set(3) if told else clock.load(3)
    event(clock)
    assert clock.epoch == (epoch_if_told if told else epoch)


def test_a_copy_of_a_sampler_has_a_clock_of_its_own():
    sampler = sampler_of(5)
    begun = iter(sampler)
    twin = copy.deepcopy(sampler)
    assert list(begun) == list(twin)
    sampler.set_epoch(7)
    assert (sampler.epoch, twin.epoch) == (7, 1)


def test_whoever_sets_the_epoch_goes_on_setting_it():
    sampler = sampler_of(5)
    list(sampler)
    assert sampler.epoch == 1
    sampler.set_epoch(1)
    assert list(sampler) == list(sampler)
    assert sampler.epoch == 1
    assert sampler.state_dict()["epoch"] == 2  # what is saved now is about the coming epoch
    sampler.set_epoch(1)
    assert sampler.state_dict()["epoch"] == 1
    sampler.restrict([1, 2])
    sampler.restart()
    assert (sampler.epoch, len(sampler)) == (0, 5)
    assert list(sampler) != list(sampler)
