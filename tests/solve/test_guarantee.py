import itertools
from functools import partial

import pytest
import torch
from exhaustive import exhaustive
from samples import cross_entropy_samples

from prunesampler import (
    Budget,
    Constraints,
    ExactCurvature,
    Influence,
    KroneckerCurvature,
    anneal,
    loss_distance,
    parameter_distance,
)

quick = partial(anneal, moves=20_000)
METRICS = [parameter_distance, loss_distance]
CURVATURES = [ExactCurvature(damping=1e-3), KroneckerCurvature(damping=1e-3)]


def additions(influence, pruned, allowed):
    """Norms after adding each allowed sample, by brute force."""
    others = [i for i in range(len(influence)) if i not in set(pruned.tolist()) and allowed(i)]
    return [influence.shift_norm(torch.cat([pruned, torch.tensor([i])])) for i in others]


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("curvature", CURVATURES)
def test_the_set_is_feasible_and_nothing_can_be_added(metric, curvature):
    samples = cross_entropy_samples(120, 3, 4)
    influence = Influence.build(samples.rows(), curvature.factorise(samples), metric=metric)
    draws = [torch.randperm(120, generator=torch.Generator().manual_seed(s))[:30] for s in range(9)]
    random = sum(influence.shift_norm(pruned) for pruned in draws) / 9
    for share in (0.003, 0.05, 0.5):
        epsilon = share * random
        pruned, norm = quick(influence, Budget(epsilon=epsilon, max_fraction=0.8))
        assert norm == influence.shift_norm(pruned) <= epsilon
        assert len(pruned) <= 96
        if len(pruned) < 96:
            assert min(additions(influence, pruned, lambda i: True)) > epsilon


def test_additions_respect_floors_and_constraints():
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    )
    labels = torch.arange(60) % 4
    for seed in range(5):
        budget = Budget(epsilon=0.5 + seed, min_per_class=9)
        constraints = Constraints(keep=range(10), prune=[20, 21])
        pruned, norm = quick(influence, budget, labels=labels, constraints=constraints, seed=seed)
        assert norm <= budget.epsilon
        kept = labels.bincount() - labels[pruned].bincount(minlength=4)
        assert (kept >= 9).all()
        gone = set(pruned.tolist())
        assert {20, 21} <= gone
        assert not gone & set(range(10))

        def allowed(i, kept=kept):
            return i >= 10 and kept[labels[i]] > 9

        assert all(n > budget.epsilon for n in additions(influence, pruned, allowed))


def test_quotas_shrink_with_the_set():
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )
    labels = torch.arange(60) % 3
    pruned, norm = quick(influence, Budget(epsilon=1.0, proportional=True), labels=labels)
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
        pruned, norm = quick(influence, Budget(epsilon=0.5), cost=cost, seed=seed)
        assert norm <= 0.5
        assert len(pruned) > 0 or max(feasible) <= 1


def test_samples_that_must_go_may_be_balanced_by_others():
    torch.manual_seed(4)
    influence, constraints = Influence.from_vectors(torch.randn(14, 2)), Constraints(prune=[0, 1])
    best = exhaustive(influence, Budget(epsilon=0.25), constraints=constraints)
    found = anneal(influence, Budget(epsilon=0.25), constraints=constraints, moves=100_000)
    assert 2 < len(found.pruned) <= len(best.pruned)
    assert influence.shift_norm(torch.tensor([0, 1])) > 0.25


def test_a_set_as_large_as_it_may_be_is_not_measured_sample_by_sample(monkeypatch):
    influence = Influence.from_vectors(
        torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    )
    monkeypatch.setattr(Influence, "sample_squares", None)
    assert len(quick(influence, Budget(epsilon=1e9, max_fraction=0.5)).pruned) == 30
