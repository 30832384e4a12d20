"""The hardest are kept, by a recorded run or this one, and nobody stays away too long."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from recording import Loop, indexed
from torch.utils.data import DataLoader

from prunesampler import Budget, InfluencePrunedSampler, PruningCallback
from prunesampler.report.text import figures, summary
from prunesampler.select.selection import Selection
from prunesampler.train.hardest import TrajectoryPruner, due, hardest
from prunesampler.train.pruners import Pruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory

NAN = math.nan


def nobody(n):
    return torch.zeros(n, dtype=torch.bool)


@given(st.integers(1, 40), st.data())
def test_the_hardest_as_sorting_finds_them(n, data):
    keep = data.draw(st.integers(1, n))
    errors = np.random.default_rng(n).permutation(n).astype(np.float32)
    found = hardest(torch.from_numpy(errors), nobody(n), keep, 0.0, torch.Generator())
    assert found.tolist() == sorted(np.argsort(-errors)[:keep].tolist())


@settings(max_examples=50)
@given(st.integers(1, 40), st.floats(0, 1), st.data())
def test_a_part_is_drawn_from_the_others(n, mix, data):
    keep = data.draw(st.integers(1, n))
    errors = torch.arange(n).float()
    found = hardest(errors, nobody(n), keep, mix, torch.Generator().manual_seed(n))
    assert len(set(found.tolist())) == keep == len(found)
    top = keep - round(mix * keep)
    assert set(range(n - top, n)) <= set(found.tolist())


def test_all_others_are_drawn_alike():
    counts = torch.zeros(20)
    for seed in range(2000):
        draw = torch.Generator().manual_seed(seed)
        counts[hardest(torch.arange(20).float(), nobody(20), 8, 0.5, draw)] += 1
    assert counts[16:].tolist() == [2000] * 4
    assert counts[:16].mean() == 500
    assert counts[:16].std() < 60


def test_those_never_seen_and_those_that_must_come_back_are_first():
    errors, back = torch.tensor([9.0, NAN, 1.0, 5.0, 0.0]), nobody(5)
    back[4] = True
    draw = torch.Generator()
    assert hardest(errors, back, 1, 0.0, draw).tolist() == [4]
    assert hardest(errors, back, 1, 1.0, draw).tolist() == [4]
    assert hardest(errors, back, 2, 0.0, draw).tolist() == [1, 4]
    assert hardest(errors, back, 3, 0.0, draw).tolist() == [0, 1, 4]
    kept = {tuple(hardest(torch.zeros(5), back, 2, 0.0, draw).tolist()) for _ in range(50)}
    assert kept == {(0, 4), (1, 4), (2, 4), (3, 4)}  # among equals chance decides


def simulate(n, pruner, recorded, epochs, rng, warmup=1):
    """Epochs in which the errors of those who are kept change as they like."""
    seen = [set(range(n))] * warmup
    rows = [torch.from_numpy(rng.random(n, dtype=np.float32)) for _ in range(warmup)]
    for epoch in range(warmup, epochs):
        recorded.trajectory = Trajectory(torch.stack(rows))
        kept = pruner.choose(epoch, None).kept
        row = torch.full((n,), NAN)
        row[kept] = torch.from_numpy(rng.random(len(kept), dtype=np.float32)) + (kept < n // 3)
        rows.append(row)
        seen.append(set(kept.tolist()))
    return seen


class Recorded(TrajectoryRecorder):
    """A recorder whose trajectory is given to it."""

    trajectory, ended = None, False

    def __init__(self, n):
        self.num_samples = n


@settings(max_examples=25)
@given(
    st.integers(2, 40), st.floats(0.05, 0.95), st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 6),
    st.integers(0, 99),
)  # fmt: skip
def test_everybody_is_seen_again_in_time(n, share, mix, more, seed):
    count = max(1, min(n - 1, int(share * n)))
    keep = n - count
    within = None if more == 0 else math.ceil(n / keep) + more
    recorded = Recorded(n)
    pruner = TrajectoryPruner(
        recorded, budget=Budget(count=count), mix=mix, returns_within=within, seed=seed
    )
    within = within or max(4, math.ceil(n / keep) + 1)
    seen = simulate(n, pruner, recorded, 40, np.random.default_rng(seed))
    assert {len(kept) for kept in seen[1:]} == {keep}
    for first in range(40 - within + 1):
        assert set().union(*seen[first : first + within]) == set(range(n)), first


@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=30), st.integers(1, 30), st.integers(1, 12)
)
def test_as_few_as_must_come_back_do(ages, keep, within):
    ages, keep = torch.tensor(ages), min(keep, len(ages))
    back = due(ages, keep, within)
    left = (within - 1 - ages).clamp(min=0)
    for wait in range(within):  # whoever has this long left, or less, has room in the coming epochs
        urgent = left <= wait
        assert int((urgent & ~back).sum()) <= keep * wait or int(back.sum()) == keep
    assert int(back.sum()) <= keep
    if back.any() and not back.all():
        assert left[back].max() <= left[~back].min()


def test_few_are_forced_so_that_the_hardest_keep_their_places():
    n, recorded = 100, Recorded(100)
    pruner = TrajectoryPruner(recorded, budget=Budget(fraction=0.5), returns_within=10)
    seen = simulate(n, pruner, recorded, 60, np.random.default_rng(0))
    hard = sum(len(kept & set(range(33))) for kept in seen[20:]) / 40
    assert hard > 27  # a third is harder than all others


def test_a_recorded_run_is_read_at_the_same_share():
    rows = torch.eye(4) + 0.01
    pruner = TrajectoryPruner(Trajectory(rows), budget=Budget(count=3), epochs=8)
    assert [pruner.choose(epoch, None).kept.tolist() for epoch in range(9)] == [
        [0], [0], [1], [1], [2], [2], [3], [3], [3],
    ]  # fmt: skip
    pruner = TrajectoryPruner(Trajectory(rows), budget=Budget(count=3), epochs=2)
    assert [pruner.choose(epoch, None).kept.tolist() for epoch in range(2)] == [[0], [2]]
    gaps = torch.where(rows < 0.5, NAN, rows)  # each sample was seen in one epoch
    pruner = TrajectoryPruner(Trajectory(gaps), budget=Budget(count=2), epochs=4)
    assert set(pruner.choose(0, None).kept.tolist()) <= {1, 2, 3}  # those never seen come first
    assert 3 in pruner.choose(2, None).kept.tolist()


def test_the_same_set_for_the_same_seed_and_another_in_another_epoch():
    found = Trajectory(torch.ones(2, 50))

    def kept(seed, epoch):
        pruner = TrajectoryPruner(found, budget=Budget(fraction=0.5), epochs=9, mix=0.4, seed=seed)
        return pruner.choose(epoch, None).kept.tolist()

    state = torch.get_rng_state()
    assert kept(1, 3) == kept(1, 3)
    assert kept(1, 3) != kept(1, 4)
    assert kept(1, 3) != kept(2, 3)
    assert torch.equal(state, torch.get_rng_state())


def test_a_selection_of_it_in_files_words_and_figures(tmp_path):
    errors = torch.tensor([[0.0, 0.1, 0.3, 0.6, NAN]])
    pruner = TrajectoryPruner(Trajectory(errors), budget=Budget(count=2), epochs=3)
    found = pruner.choose(1, None)
    assert found.pruned.tolist() == [0, 1]
    found.save(tmp_path / "kept.safetensors")
    again = Selection.load(tmp_path / "kept.safetensors")
    assert again.kept.tolist() == [2, 3, 4]
    assert again.metadata == found.metadata
    assert again.metadata["headroom"] == pytest.approx(0.9)
    (line,) = summary(0, again, 0.1, 10.0).splitlines()
    assert "kept 3 of 5 samples (60.0%), chosen by the errors of training; headroom 0.90" in line
    assert figures(again, 0.1) == {
        "pruning/kept": 3.0, "pruning/seconds": 0.1, "pruning/headroom": pytest.approx(0.9),
    }  # fmt: skip
    nothing = TrajectoryPruner(Trajectory(torch.zeros(1, 5)), budget=Budget(count=2), epochs=3)
    found = nothing.choose(0, None)
    found.save(tmp_path / "kept.safetensors")
    again = Selection.load(tmp_path / "kept.safetensors")
    assert "headroom unknown" in summary(0, again, 0.1, None)
    assert len(again.kept) == 3


class Run(Loop):
    """A loop with the callback, which is told of every epoch's end."""

    def __init__(self, make, epochs=8, warmup=2, n=60, **options):
        super().__init__(n=n, **options)
        self.kept, self.epochs = [], epochs
        pruner = make(self.recorder)
        self.pruning = PruningCallback(
            self.sampler, pruner, warmup_epochs=warmup, refresh_every=1, epochs=epochs
        )

    def run(self, first=0):
        for epoch in range(first, self.epochs):
            self.epoch(end=False)
            self.kept.append(self.sampler.kept.tolist())
            self.pruning.on_epoch_end(epoch, self.model)
        return self


def are_the_hardest(kept, errors):
    """In half precision some errors are equal, and either sample may be kept."""
    top = errors.sort(descending=True).values[: len(kept)]
    return torch.equal(errors[kept].sort(descending=True).values, top)


def own(**options):
    return lambda recorder: TrajectoryPruner(
        recorder, budget=Budget(fraction=0.4), progress=False, **options
    )


@pytest.mark.parametrize("mix", [0.0, 0.5])
def test_a_run_by_its_own_errors(mix):
    loop = Run(own(mix=mix)).run()
    assert loop.is_right()
    assert [len(kept) for kept in loop.kept] == [60, 60, 36, 36, 36, 36, 36, 36]
    assert len(loop.losses) == loop.pruning.planned_steps(epochs=8, batch_size=8)
    assert len({tuple(kept) for kept in loop.kept}) == 7
    for first in range(5):
        assert set().union(*loop.kept[first : first + 4]) == set(range(60))
    if not mix:
        assert are_the_hardest(loop.kept[2], loop.found[1])


@pytest.mark.parametrize("epochs", [3, 8, 20])
def test_a_run_by_another_s_errors(epochs, tmp_path):
    small = Loop()
    for _ in range(epochs):
        small.epoch()
    small.recorder.trajectory.save(tmp_path / "small.safetensors")
    found = Trajectory.load(tmp_path / "small.safetensors")
    loop = Run(
        lambda recorder: TrajectoryPruner(found, budget=Budget(count=40), epochs=8, progress=False),
        recorded=False, warmup=1,
    ).run()  # fmt: skip
    for epoch in range(1, 8):
        assert len(loop.kept[epoch]) == 20
        assert are_the_hardest(loop.kept[epoch], found.errors[epoch * epochs // 8])
    assert len(loop.losses) == loop.pruning.planned_steps(epochs=8, batch_size=8)


@pytest.mark.parametrize("stop", [1, 4, 6])
def test_a_resumed_run_keeps_the_same(stop):
    whole = Run(own(mix=0.3)).run()
    part = Run(own(mix=0.3))
    part.epochs = stop
    part.run()
    weights = {"model": part.model.state_dict(), "noise": torch.get_rng_state()}
    again = Run(own(mix=0.3))
    again.model.load_state_dict(weights["model"])
    torch.set_rng_state(weights["noise"])
    again.pruning.load_state_dict(part.pruning.state_dict())
    again.run(stop)
    assert again.kept == whole.kept[stop:]
    assert again.losses == whole.losses[-len(again.losses) :]
    assert torch.equal(again.found.isnan(), whole.found.isnan())


def test_a_second_run_with_the_same_callback():
    loop = Run(own(), epochs=4).run()
    loop.pruning.reset()
    assert len(loop.found) == 0
    loop.truth.rows.clear()
    loop.kept.clear()
    loop.run()
    assert [len(kept) for kept in loop.kept] == [60, 60, 36, 36]
    assert loop.is_right()


def test_what_cannot_be():
    found = Trajectory(torch.rand(3, 60))
    data = indexed()
    sampler = InfluencePrunedSampler(data)
    for options, message in [
        ({"budget": Budget(epsilon=0.1), "epochs": 3}, "a trajectory knows nothing"),
        ({"budget": Budget(count=9)}, "epochs=None: with a recorded trajectory"),
        ({"budget": Budget(count=9), "epochs": 0}, "epochs=0"),
        ({"budget": Budget(count=9), "epochs": 3, "mix": 1.5}, "mix must be from 0 to 1, got 1.5"),
        ({"budget": Budget(count=9), "epochs": 3, "mix": NAN}, "mix must be from 0 to 1, got nan"),
        ({"budget": Budget(count=9), "epochs": 3, "seed": -1}, "seed must be"),
        ({"budget": Budget(count=60), "epochs": 3}, "60"),
        ({"budget": Budget(count=40), "epochs": 3, "returns_within": 3}, "within 4 epochs"),
    ]:
        with pytest.raises(ValueError, match=message):
            TrajectoryPruner(found, **options)
    with pytest.raises(ValueError, match="has 0 epochs, but 1 are needed"):
        TrajectoryPruner(Trajectory(torch.zeros(0, 60)), budget=Budget(count=9), epochs=3)
    pruner = TrajectoryPruner(found, budget=Budget(count=9), epochs=3)
    with pytest.raises(
        ValueError, match=r"redraw_every=2 .* a TrajectoryPruner; use refresh_every"
    ):
        PruningCallback(sampler, pruner, redraw_every=2)
    with pytest.raises(ValueError, match="has 60 samples, the sampler's dataset 61"):
        PruningCallback(InfluencePrunedSampler(range(61)), pruner, refresh_every=1)
    recorder = TrajectoryRecorder(sampler)
    with pytest.raises(ValueError, match="nothing was recorded yet"):
        TrajectoryPruner(recorder, budget=Budget(count=9)).choose(1, None)


@pytest.mark.filterwarnings("ignore:the recording of the trajectory has ended")
def test_a_recording_that_ended_leaves_as_many():
    loop = Run(own(), epochs=6)
    views = loop.step
    loop.step = lambda x, y, index: (
        views(x, y, index) + (loop.model(x).mean() if len(loop.truth.rows) == 4 else 0)
    )
    with pytest.warns(UserWarning, match="ended after 3 epochs"):
        loop.run()
    assert [len(kept) for kept in loop.kept] == [60, 60, 36, 36, 36, 36]
    assert len(loop.found) == 3


def test_a_pruner_of_one_s_own():
    class EveryThird(Pruner):
        num_samples, budget, progress = 60, Budget(count=20), False

        def choose(self, epoch, model):
            return Selection(
                torch.arange(epoch % 3, 60, 3),
                60,
                NAN,
                NAN,
                None,
                self.budget,
                metadata={"by": "turns"},
            )

    sampler = InfluencePrunedSampler(indexed())
    pruning = PruningCallback(sampler, EveryThird(), warmup_epochs=1, refresh_every=1)
    loader = DataLoader(indexed(), 8, sampler=sampler)
    for epoch in range(4):
        list(loader)
        pruning.on_epoch_end(epoch, torch.nn.Linear(8, 4))
        assert sampler.kept[0] == (1 if (epoch + 1) % 3 == 0 else 0)
    assert len(sampler) == 40


@pytest.mark.parametrize("first", [0, 3])
def test_a_recording_that_ends_leaves_a_run_that_draws_at_random(first):
    """In the first epoch, of which nothing is known then, and in a later one."""
    loop = Run(own(), epochs=12)
    loop.epochs = first
    loop.run()
    loop.step = lambda x, y, index: F.cross_entropy(loop.model(x) + loop.model(x), y)
    loop.epochs = 12
    with pytest.warns(UserWarning, match="recording of the trajectory") as caught:
        loop.run(first)
    told = [str(w.message) for w in caught]
    assert sum("recording of the trajectory ended after" in text for text in told) == 1
    assert sum("are drawn at random" in text for text in told) == 1
    later = loop.kept[max(3, first + 1) :]
    assert all(len(kept) == 36 for kept in later)
    assert len({tuple(kept) for kept in later}) == len(later)
    assert set().union(*later) == set(range(60))


def test_a_callback_that_would_choose_once_warns():
    loop = Loop()
    pruner = TrajectoryPruner(loop.recorder, budget=Budget(fraction=0.4), progress=False)
    with pytest.warns(UserWarning, match="without refresh_every= they are chosen once"):
        PruningCallback(loop.sampler, pruner, warmup_epochs=1)
    assert pruner.changes
