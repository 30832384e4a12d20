"""The accuracy benchmarks: what each method chooses, and what the runs have in common."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from data import digits as digit_images
from ideas import FullEnd, inclusion, larger_steps, projected_gradients, whole_network
from methods import METHODS, coverage, everything
from models import convmixer, plain_cnn, resnet9, resnet18, tiny_resnet
from pools import APPLICABLE, accuracy
from pools_data import POOLS, SKEW, Drawing, Sizes, load
from pools_methods import METHODS as POOL_METHODS
from pools_methods import Task
from torch import nn
from training import Progress, Recipe, fresh, train

CPU = torch.device("cpu")
RECIPE = Recipe(epochs=5, warmup_epochs=2, fraction=0.4, batch_size=64)


@pytest.fixture(scope="module")
def images():
    return digit_images().first(300)


@pytest.fixture
def progress(images):
    """After a warm-up of made-up losses."""
    made = Progress(images, RECIPE, fresh(images, tiny_resnet, 0), steps=100)
    made.epoch = 2
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        losses = torch.rand(300, generator=generator)
        made.remember(torch.arange(300), losses, losses < 0.5)
    return made


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("all data", "fewer epochs")])
def test_every_method_keeps_what_the_budget_says(name, progress):
    kept, weights = METHODS[name]()(progress)
    assert len(kept) == len(kept.unique())
    if name == "InfoBatch":
        assert weights.max() > weights.min() == 1
    else:
        assert weights is None
        assert abs(len(kept) - 180) <= (5 if name == "moderate" else 0)  # rounded in every class


def test_the_weights_of_infobatch_stand_for_all_samples(progress):
    counts, totals = [], torch.zeros(300)
    for progress.epoch in range(200):
        kept, weights = METHODS["InfoBatch"]()(progress)
        counts.append(len(kept))
        totals[kept] += weights
    assert sum(counts) / 200 == pytest.approx(180, abs=3)
    assert torch.allclose(totals / 200, torch.ones(300), atol=0.6)
    assert float(totals.mean()) / 200 == pytest.approx(1, abs=0.02)


def test_scores_are_what_their_papers_say(progress):
    """Against the same numbers from plain autograd."""
    model, (x, y) = progress.model.eval(), progress.images.train.tensors
    normalise, network = model
    features = network[:-1](normalise(x)).detach()
    head = network[-1]
    errors, lengths = [], []
    for feature, label in zip(features, y, strict=True):
        outputs = head(feature).detach().requires_grad_()
        loss = nn.functional.cross_entropy(outputs[None], label[None])
        errors.append(torch.autograd.grad(loss, outputs)[0].norm())
        loss = nn.functional.cross_entropy(head(feature)[None], label[None])
        parts = torch.autograd.grad(loss, tuple(head.parameters()))
        lengths.append(sum(part.square().sum() for part in parts).sqrt())
    model.train()
    for name, score in (("EL2N", torch.stack(errors)), ("GraNd", torch.stack(lengths))):
        kept = METHODS[name]()(progress)[0]
        dropped = torch.ones(300, dtype=torch.bool)
        dropped[kept] = False
        assert score[kept].min() >= score[dropped].max() - 1e-4


def test_forgetting_counts_from_right_to_wrong(progress):
    indices = torch.arange(4)
    progress.forgotten.zero_()
    progress.right.fill_(True)
    for right in ([1, 0, 1, 1], [1, 1, 0, 1], [1, 0, 0, 1]):
        progress.remember(indices, torch.ones(4), torch.tensor(right, dtype=torch.bool))
    assert progress.forgotten[:4].tolist() == [0, 2, 1, 0]
    assert {1, 2} <= set(METHODS["forgetting"]()(progress)[0].tolist())


def test_all_methods_take_the_same_steps_and_equal_weights_change_nothing(images):
    steps = RECIPE.pruned_steps(300)
    assert steps == 2 * 4 + 3 * 2

    def run(method):
        return train(images, fresh(images, tiny_resnet, 0), RECIPE, method, steps, CPU)

    first = run(everything)
    same = run(lambda progress: (torch.arange(300), torch.ones(300)))
    other = run(METHODS["random"]())
    assert first.steps == same.steps == other.steps == steps
    assert first.accuracy == same.accuracy
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.parameters(), same.model.parameters(), strict=True)
    )
    assert first.samples == other.samples == steps * 64
    assert Recipe(3, 1, 0.9, 64).pruned_steps(300) == 4 + 2 * 1  # 30 samples make a batch


def measured_as(monkeypatch, delta, inputs=None):
    """Let methods see these measurements: errors (n, C) and features (n, d)."""
    errors = None if delta is None else delta.double().norm(dim=1)
    measured = SimpleNamespace(delta=delta, inputs=inputs, errors=errors)
    found = SimpleNamespace(measurements=measured)
    monkeypatch.setattr("methods.measured", lambda progress: found)


def test_coverage_takes_every_difficulty_alike(progress, monkeypatch):
    # Difficulties 1 (200 samples), 2 (60) and 3 (40): 180 kept are 80, 60 and 40.
    difficulty = torch.tensor([1.0, 2.0, 3.0]).repeat_interleave(torch.tensor([200, 60, 40]))
    measured_as(monkeypatch, difficulty[:, None])
    kept = coverage(progress, strata=3)
    assert torch.bincount(difficulty[kept].long()).tolist() == [0, 80, 60, 40]
    progress.recipe = replace(RECIPE, fraction=0.7)
    progress.keep = 90
    kept = coverage(progress, strata=3)  # without the hardest tenth: 200, 60 and 10
    assert torch.bincount(difficulty[kept].long()).tolist() == [0, 40, 40, 10]


def test_moderate_takes_the_middle_of_every_class(progress, monkeypatch):
    labels = progress.images.train.tensors[1]
    position = torch.zeros(300)
    for label in range(10):
        members = labels == label
        position[members] = torch.arange(int(members.sum())).float()
    # Two-sided around the mean, so that distances to it are 0, 1, 2 ...
    measured_as(monkeypatch, None, (position * (-1) ** position)[:, None])
    kept = METHODS["moderate"]()(progress)[0]
    for label in range(10):
        count = int((labels == label).sum())
        mine = position[kept[labels[kept] == label]]
        assert (mine - count / 2).abs().max() <= 0.3 * count + 2


def test_what_is_redrawn_changes_and_what_is_not_does_not(progress):
    for name, changes in (
        ("random", False), ("random, redrawn", True), ("influence", False),
        ("influence, redrawn", True), ("influence, refreshed", False),
    ):  # fmt: skip
        method = METHODS[name]()
        progress.epoch = 2
        first = method(progress)[0].sort().values
        progress.epoch = 3
        assert torch.equal(first, method(progress)[0].sort().values) != changes, name


def test_the_end_on_all_data_takes_the_last_steps(progress):
    method = FullEnd(METHODS["random"](), epochs=2)
    progress.steps_left = 9
    assert len(method(progress)[0]) == 180
    progress.steps_left = 8
    assert len(method(progress)[0]) == 300


def test_inclusion_probabilities_sum_to_the_kept_and_keep_their_bounds():
    norms = torch.rand(500, generator=torch.Generator().manual_seed(0)) ** 4
    chance = inclusion(norms, keep=200)
    assert float(chance.sum()) == pytest.approx(200, abs=0.1)
    assert float(chance.min()) >= 0.2 - 1e-6
    assert float(chance.max()) <= 1
    between = (chance > 0.2001) & (chance < 0.9999)
    assert torch.allclose(
        (chance / norms)[between], (chance / norms)[between][0].expand(int(between.sum()))
    )


def test_whole_network_gradients_are_projected(images):
    small = Progress(images.first(7), RECIPE, fresh(images, tiny_resnet, 0), steps=1)
    rows = projected_gradients(small, dimensions=6, batch=3)
    model, (x, y) = small.model.eval(), small.images.train.tensors
    generator = torch.Generator().manual_seed(RECIPE.seed)
    expected = torch.zeros(7, 6)
    projections = [torch.randn(p.numel(), 6, generator=generator) for p in model.parameters()]
    for i in range(7):
        loss = nn.functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
        for part, matrix in zip(
            torch.autograd.grad(loss, tuple(model.parameters())), projections, strict=True
        ):
            expected[i] += part.flatten() @ matrix / 6**0.5
    assert torch.allclose(rows, expected, rtol=1e-3, atol=1e-3)


def test_a_set_of_the_whole_network_balances_its_gradients(images):
    progress = Progress(images, RECIPE, fresh(images, tiny_resnet, 0), steps=1)
    kept = whole_network(progress, dimensions=8)
    assert len(kept.unique()) == len(kept) == 180
    rows = projected_gradients(progress, dimensions=8)
    rows = rows - rows.mean(0)
    generator = torch.Generator().manual_seed(2)
    random = [rows[torch.randperm(300, generator=generator)[:180]].sum(0).norm() for _ in range(9)]
    assert rows[kept].sum(0).norm() < 0.1 * torch.stack(random).median()


def test_larger_steps_weigh_as_infobatch_does_on_average(progress):
    kept, weights = larger_steps(progress)
    assert torch.equal(kept, torch.arange(300))
    means = []
    for progress.epoch in range(200):
        means.append(float(METHODS["InfoBatch"]()(progress)[1].mean()))
    assert float(weights.mean()) == pytest.approx(sum(means) / 200, rel=0.01)


@pytest.fixture(scope="module")
def features():
    return load(None)


def drawn(name, features, seed=3):
    return POOLS[name](Drawing(features, Sizes(pool=300, wanted=50), seed))


def sources(pool, features):
    """The training sample that each of the pool's is nearest to, and how near."""
    distances = torch.cdist(pool.x, features.x)
    return distances.argmin(1), distances.amin(1)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("junk 20 %", 0.2), ("junk 80 %", 0.8), ("other labels 50 %", 0.5), ("wrong labels 40 %", 0.4),
        ("near copies 30 %", 0.3), ("clean", 0.0),
    ],
)  # fmt: skip
def test_pools_are_bad_where_they_say(name, share, features):
    pool = drawn(name, features)
    assert torch.equal(pool.x, drawn(name, features).x)
    everything, good = torch.arange(len(pool)), pool.good()
    assert len(pool) == 300
    assert pool.bad_of(everything) == int((~good).sum()) == round(300 * share)
    assert pool.bad_of(good.nonzero()[:, 0]) == 0
    classes = pool.test.tensors[1].unique()
    assert len(classes) == (5 if name.startswith(("junk", "other")) else 10)
    assert torch.isin(pool.wanted.tensors[1], classes).all()
    assert torch.isin(pool.y[good], classes).all()
    assert bool(torch.isin(pool.y[~good], classes).all()) == (name != "other labels 50 %")
    # Labels are numbered anew, so those of the good samples tell which number each class has.
    place, distance = sources(pool, features)
    assert torch.allclose(distance[pool.good()], torch.zeros(int(good.sum())), atol=1e-2)
    number = torch.full((10,), -1)
    number[features.y[place[good]]] = pool.y[good]
    assert torch.equal(number[features.y[place[good]]], pool.y[good])
    if name.startswith(("wrong", "junk")):
        assert (number[features.y[place[~good]]] != pool.y[~good]).all()


def test_of_copies_any_may_stay(features):
    pool = drawn("near copies 30 %", features)
    groups, counts = pool.source.unique(return_counts=True)
    copied = int(groups[counts.argmax()])
    same = (pool.source == copied).nonzero()[:, 0]
    assert pool.bad_of(same) == len(same) - 1 == 8
    assert pool.bad_of(same[same != copied][:1]) == 0
    assert (pool.y[same] == pool.y[copied]).all()


def test_a_long_tail_falls_by_the_same_factor(features):
    pool = drawn("long tail 50:1", features)
    labels = torch.cat([pool.y, pool.wanted.tensors[1]])
    counts = torch.bincount(labels).double()
    assert float(counts[0] / counts[-1]) == pytest.approx(SKEW, rel=0.3)
    assert torch.equal(counts, counts.sort(descending=True).values)


def test_methods_keep_as_many_as_they_say(features):
    pool, chosen = drawn("junk 50 %", features), APPLICABLE["junk 50 %"]
    kept = {name: POOL_METHODS[name](Task(pool, 0)) for name in chosen}
    for name, found in kept.items():
        assert torch.equal(found, found.unique())
        if name not in ("all data", "wanted alone") and not name.startswith("audit"):
            assert len(found) == 150
    assert pool.bad_of(kept["truth known"]) == 0
    assert pool.bad_of(kept["Target"]) < pool.bad_of(kept["random"]) / 2


def test_accuracy_is_the_mean_over_the_classes():
    x, y = torch.eye(2)[torch.tensor([0, 0, 0, 1])], torch.tensor([0, 0, 0, 0])
    y[2:] = 1
    assert accuracy(nn.Identity(), torch.utils.data.TensorDataset(x, y)) == 0.75


@pytest.mark.parametrize("build", [tiny_resnet, plain_cnn, convmixer, resnet9, resnet18])
def test_networks_take_small_color_images(build):
    outputs = build(3, 10)(torch.rand(2, 3, 32, 32))
    assert outputs.shape == (2, 10)


def test_a_warm_up_as_long_as_the_run_is_refused():
    with pytest.raises(SystemExit, match="warmup_epochs must be less than the 3 epochs, got 4"):
        Recipe(epochs=3, warmup_epochs=4, fraction=0.4)
