import itertools
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_influence import cross_entropy_samples

from prunesampler import (
    Budget,
    Constraints,
    ExactCurvature,
    Influence,
    InfluencePruner,
    KroneckerCurvature,
    anneal,
    exchange,
    exhaustive,
    loss_distance,
    parameter_distance,
    rows,
)
from prunesampler.solve.epsilon import TooFew, largest_curved

quick = [partial(anneal, moves=20_000), partial(exchange, moves=20_000)]
METRICS = [parameter_distance, loss_distance]
CURVATURES = [ExactCurvature(damping=1e-3), KroneckerCurvature(damping=1e-3)]


def additions(influence, pruned, allowed):
    """Norms after adding each allowed sample, by brute force."""
    others = [i for i in range(len(influence)) if i not in set(pruned.tolist()) and allowed(i)]
    return [influence.shift_norm(torch.cat([pruned, torch.tensor([i])])) for i in others]


@pytest.mark.parametrize("solver", quick)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_set_is_feasible_and_nothing_can_be_added(solver, metric, curvature):
    samples = cross_entropy_samples(120, 3, 4)
    influence = Influence.build(samples.rows(), curvature.factorise(samples), metric=metric)
    draws = [torch.randperm(120, generator=torch.Generator().manual_seed(s))[:30] for s in range(9)]
    random = sum(influence.shift_norm(pruned) for pruned in draws) / 9
    for share in (0.003, 0.05, 0.5):
        epsilon = share * random
        pruned, norm = solver(influence, Budget(epsilon=epsilon, max_fraction=0.8))
        assert norm == influence.shift_norm(pruned) <= epsilon
        assert len(pruned) <= 96
        if len(pruned) < 96:
            assert min(additions(influence, pruned, lambda i: True)) > epsilon


def test_additions_respect_floors_constraints_and_groups():
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    labels = torch.arange(60) % 4
    for seed in range(5):
        budget = Budget(epsilon=0.5 + seed, min_per_class=9)
        constraints = Constraints(keep=range(10), prune=[20, 21], groups=[-1] * 40 + [5] * 20)
        pruned, norm = quick[0](
            influence, budget, labels=labels, constraints=constraints, seed=seed
        )
        assert norm <= budget.epsilon
        kept = labels.bincount() - labels[pruned].bincount(minlength=4)
        assert (kept >= 9).all()
        gone = set(pruned.tolist())
        assert {20, 21} <= gone
        assert not gone & set(range(10))
        assert len(gone & set(range(40, 60))) in (0, 20)

        def allowed(i, kept=kept):
            return 10 <= i < 40 and kept[labels[i]] > 9

        assert all(n > budget.epsilon for n in additions(influence, pruned, allowed))


def test_quotas_shrink_with_the_set():
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    labels = torch.arange(60) % 3
    pruned, norm = quick[0](influence, Budget(epsilon=1.0, proportional=True), labels=labels)
    counts = labels[pruned].bincount(minlength=3)
    assert norm <= 1.0
    assert len(pruned) > 20
    assert counts.max() - counts.min() <= 1


def test_exhaustive_finds_the_largest_set_with_a_cost_and_with_samples_that_must_go():
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        vectors = torch.randn(10, 2, generator=generator, dtype=torch.float64)
        influence, cost = Influence.from_vectors(vectors), torch.randn(10, generator=generator)
        feasible = [
            len(pruned)
            for m in range(10)
            for pruned in itertools.combinations(range(10), m)
            if m == 0 or influence.shift_norm(torch.tensor(pruned)) <= 0.5
        ]
        assert len(exhaustive(influence, Budget(epsilon=0.5), cost=cost).pruned) == max(feasible)
        pruned, norm = quick[0](influence, Budget(epsilon=0.5), cost=cost, seed=seed)
        assert norm <= 0.5
        assert len(pruned) > 0 or max(feasible) <= 1


def test_samples_that_must_go_may_be_balanced_by_others():
    torch.manual_seed(4)
    influence, constraints = Influence.from_vectors(torch.randn(14, 2)), Constraints(prune=[0, 1])
    best = exhaustive(influence, Budget(epsilon=0.25), constraints=constraints)
    found = anneal(influence, Budget(epsilon=0.25), constraints=constraints, moves=100_000)
    assert 2 < len(found.pruned) <= len(best.pruned)
    assert influence.shift_norm(torch.tensor([0, 1])) > 0.25


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_bisecting_for_curvature(a, b, c):
    least, limit, refused = sorted((a, b, c))
    tried = []

    def attempt(size):
        tried.append(size)
        return size if size <= limit else None

    found = largest_curved(refused, least, attempt)
    assert len(tried) <= 8
    assert all(least < size < refused for size in tried)
    if found is None:
        assert limit - least <= max(1, (refused - least) / 2**8, least / 20) + 1
    else:
        assert found <= limit
        assert limit - found <= max(1, found / 20, (refused - least) / 2**8) + 1


def test_sizes_too_small_for_what_must_go_are_left_behind():
    def attempt(size):
        if size < 60:
            raise TooFew("nothing balances them")
        return size if size <= 64 else None

    assert 60 <= largest_curved(100, 5, attempt) <= 64


def test_a_set_as_large_as_it_may_be_is_not_measured_sample_by_sample(monkeypatch):
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    )
    monkeypatch.setattr(Influence, "sample_squares", None)
    assert len(quick[0](influence, Budget(epsilon=1e9, max_fraction=0.5)).pruned) == 30


def test_groups_of_a_large_layer_are_measured_in_bounded_memory(monkeypatch):
    samples = cross_entropy_samples(120, 3, 4)
    influence = Influence.build(samples.rows(), ExactCurvature(damping=1e-3).factorise(samples))
    constraints = Constraints(groups=torch.arange(120) // 2)
    budget = Budget(epsilon=0.05, max_fraction=0.8)
    expected = quick[0](influence, budget, constraints=constraints)
    stacks, squares = [], Influence.squares
    monkeypatch.setattr(rows, "DENSE_BYTES", 8 * 2 * 5 * 7)  # seven matrices
    monkeypatch.setattr(
        Influence, "squares", lambda i, stack: stacks.append(len(stack)) or squares(i, stack)
    )
    found = quick[0](influence, budget, constraints=constraints)
    assert found.pruned.tolist() == expected.pruned.tolist()
    assert max(stacks) == 7


def test_a_share_of_the_curvature_that_cannot_be_kept(few_digits):
    model = torch.nn.Sequential(torch.nn.Linear(64, 10))
    options = {"curvature": ExactCurvature(damping=0.1), "progress": False, "solver": quick[0]}
    budget = Budget(epsilon=1e3, min_curvature=0.999)
    with pytest.raises(ValueError, match="less than min_curvature=0.999"):
        InfluencePruner(
            few_digits, budget=budget, constraints=Constraints(prune=range(100)), **options
        ).select(model)
