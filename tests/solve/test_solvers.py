from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from exhaustive import exhaustive
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import cross_entropy_samples
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    Budget,
    ExactCurvature,
    Influence,
    InfluencePruner,
    anneal,
)
from prunesampler.solve.problem import Problem
from prunesampler.solve.scaled import COLDEST, Scaled

quick_anneal = partial(anneal, moves=100_000)


def random_problem(seed, most=16):
    generator = torch.Generator().manual_seed(seed)
    n = int(torch.randint(4, most + 1, (), generator=generator))
    dimensions = int(torch.randint(1, 9, (), generator=generator))
    size = int(torch.randint(1, n, (), generator=generator))
    scale = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    vectors = scale * torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    return Influence.from_vectors(vectors), Budget(count=size)


@pytest.mark.slow
@pytest.mark.parametrize("hundred", range(5))  # apart, for machines on which all take minutes
def test_annealing_finds_the_optimum(hundred):
    excess = []
    for seed in range(100 * hundred, 100 * hundred + 100):
        influence, budget = random_problem(seed, most=20)
        best = exhaustive(influence, budget).norm
        excess.append(anneal(influence, budget, seed=seed, moves=200_000).norm / best - 1)
    assert sum(x < 1e-6 for x in excess) >= 98


def test_annealing_with_a_cost_finds_the_optimum():
    def energy(solution, influence, cost):
        n, m = len(influence), len(solution.pruned)
        spread = influence.sample_squares().sum()
        random = float((m * (n - m) / (n * (n - 1)) * spread).sqrt()) / (n - m)
        return solution.norm / random + float(cost[solution.pruned].mean())

    for seed in range(60):
        influence, budget = random_problem(seed, most=14)
        generator = torch.Generator().manual_seed(seed)
        cost = torch.randn(len(influence), generator=generator, dtype=torch.float64)
        best = exhaustive(influence, budget, cost=cost)
        found = anneal(influence, budget, cost=cost, seed=seed, moves=300_000)
        expected = energy(best, influence, cost)
        assert energy(found, influence, cost) <= expected + 1e-6


@pytest.mark.parametrize(("fraction", "most"), [(0.4, 0.05), (0.7, 0.06), (0.9, 0.12)])
def test_digits_on_16_principal_components_move_the_head_little(fraction, most):
    """True shift after retraining by scikit-learn, as a share of that of random sets."""
    x, y = load_digits(return_X_y=True)
    x = np.hstack([PCA(16, random_state=0).fit_transform(x / 16), np.ones((len(y), 1))])

    def fit(kept):
        return torch.from_numpy(
            LogisticRegression(
                C=1 / (0.01 * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
            ).fit(x[kept], y[kept]).coef_
        )  # fmt: skip

    full = fit(np.arange(len(y)))
    model = nn.Sequential(nn.Linear(17, 10, bias=False)).double()
    model[0].weight.data = full
    pruner = InfluencePruner(
        TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), budget=Budget(fraction=fraction),
        curvature=ExactCurvature(damping=0.01), progress=False,
    )  # fmt: skip
    selection = pruner.select(model)
    size = len(selection.pruned)
    random = [
        float((fit(np.random.default_rng(s).permutation(len(y))[size:]) - full).norm())
        for s in range(5)
    ]
    true = float((fit(selection.kept.numpy()) - full).norm())
    assert true <= most * float(np.mean(random))
    assert selection.newton_shift == pytest.approx(true, rel=0.05)


def test_exhaustive_equals_a_plain_loop():
    influence, _ = random_problem(3, most=8)
    n = len(influence)
    best = min(
        influence.shift_norm(torch.tensor([a, b])) for a in range(n) for b in range(a + 1, n)
    )
    assert exhaustive(influence, Budget(count=2)).norm == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("solver", [quick_anneal, exhaustive])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), floor=st.integers(0, 3))
def test_every_set_obeys_budget_and_floors_and_its_norm_is_its_own(solver, seed, floor):
    influence, budget = random_problem(seed, most=10)
    n, size = len(influence), budget.count_of(len(influence))
    labels = torch.arange(n) % 3
    floors = torch.bincount(labels).clamp(max=floor)
    budget = Budget(count=size, min_per_class=floor)
    if size > n - int(floors.sum()):
        with pytest.raises(ValueError, match=f"min_per_class={floor} .*lets at most"):
            solver(influence, budget, labels=labels, seed=seed)
        return
    pruned, norm = solver(influence, budget, labels=labels, seed=seed)
    assert len(pruned) == size
    assert torch.equal(pruned, pruned.unique())
    kept = torch.ones(n, dtype=torch.bool)
    kept[pruned] = False
    assert (torch.bincount(labels[kept], minlength=3) >= floors).all()
    assert norm == influence.shift_norm(pruned)


@pytest.mark.parametrize("solver", [quick_anneal])
def test_the_same_seed_gives_the_same_set_and_another_seed_another(solver):
    influence = Influence.from_vectors(
        torch.randn(300, 20, generator=torch.Generator().manual_seed(0))
    )
    global_state = torch.get_rng_state()
    first, again, other = (solver(influence, Budget(count=100), seed=s).pruned for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), global_state)


@pytest.mark.parametrize("solver", [quick_anneal, exhaustive])
def test_epsilon_sets_are_feasible_and_as_large_as_known(solver):
    for seed in range(10):
        influence, _ = random_problem(seed, most=12)
        n = len(influence)
        smallest = [
            exhaustive(influence, Budget(count=m)).norm for m in range(1, int(0.75 * n) + 1)
        ]
        epsilon = sorted(smallest)[len(smallest) // 2]
        budget = Budget(epsilon=epsilon, max_fraction=0.75)
        pruned, norm = solver(influence, budget, seed=seed)
        assert norm <= epsilon
        assert norm == (influence.shift_norm(pruned) if len(pruned) else 0.0)
        most = max(m for m, value in enumerate(smallest, 1) if value <= epsilon)
        assert len(pruned) <= most
        if solver is exhaustive:
            assert len(pruned) == most


def test_epsilon_sets_are_large():
    influence = Influence.from_vectors(
        torch.randn(80, 40, generator=torch.Generator().manual_seed(0))
    )
    for size in (5, 20, 35):
        epsilon = 1.001 * quick_anneal(influence, Budget(count=size)).norm
        budget = Budget(epsilon=epsilon, max_fraction=0.5)
        assert len(quick_anneal(influence, budget).pruned) >= size - 2


def test_an_epsilon_that_nothing_meets_prunes_nothing():
    influence, _ = random_problem(0)
    solution = quick_anneal(influence, Budget(epsilon=0.0))
    assert len(solution.pruned) == 0
    assert solution.norm == 0.0


def test_searching_in_whitened_coordinates_lowers_the_shift_in_parameter_units():
    samples = cross_entropy_samples(400, 4, 5)
    factor = ExactCurvature(damping=1e-3).factorise(samples)
    influence = Influence.build(samples.rows(), factor)
    drawn = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:160].sort().values
    found = quick_anneal(influence, Budget(fraction=0.4))
    assert found.norm < 0.1 * influence.shift_norm(drawn)


def test_progress_is_told_to_the_end():
    influence, budget = random_problem(0)
    uneven = partial(anneal, moves=128 * 250 + 7)  # no whole number of hundredths
    for solver in (quick_anneal, uneven, exhaustive):
        calls = []
        solver(influence, budget, progress=lambda done, total: calls.append((done, total)))  # noqa: B023
        assert calls[-1][0] == calls[-1][1]


def test_equal_samples_are_no_problem():
    influence = Influence.from_vectors(torch.ones(30, 4))
    for solver in (quick_anneal,):
        assert solver(influence, Budget(count=10)).norm == pytest.approx(0, abs=1e-12)


@given(st.floats(1e-6, 1.0), st.integers(1, 2000), st.integers(1, 50))
def test_temperatures_are_laid_out_block_by_block_as_all_at_once(hottest, steps, blocks):
    """To the last bit: another temperature would be another set."""
    influence, budget = random_problem(0)
    search = replace(Scaled.of(Problem.of(influence, budget), 1), hottest=hottest)
    expected = np.geomspace(hottest, hottest * COLDEST, max(2, steps))[:steps]
    edges = np.linspace(0, steps, blocks + 1).astype(int).tolist()
    found = [search.temperatures(steps, a, b) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(found), expected)
    np.testing.assert_array_equal(search.temperatures(steps), expected)


def test_annealing_never_lays_out_all_temperatures(monkeypatch):
    asked, temperatures = [], Scaled.temperatures

    def noted(search, *arguments):
        found = temperatures(search, *arguments)
        asked.append(len(found))
        return found

    monkeypatch.setattr(Scaled, "temperatures", noted)
    influence, budget = random_problem(0)
    anneal(influence, budget, moves=12_345)
    assert sum(asked) == 12_345
    assert max(asked) == 124
