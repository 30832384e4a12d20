import pytest
import torch
from exhaustive import exhaustive
from hypothesis import given
from hypothesis import strategies as st

from prunesampler import (
    Budget,
    Constraints,
    Influence,
    InfluencePrunedSampler,
    anneal,
)
from prunesampler.solve.problem import Problem
from prunesampler.solve.solvers import cheapest
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.steps import planned_lengths

SOLVERS = [anneal, exhaustive, cheapest]


def influence_of(n, dimensions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Influence.from_vectors(
        torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    )


def solve(solver, influence, budget, **options):
    if solver is cheapest:
        generator = torch.Generator().manual_seed(len(influence))
        cost = torch.randn(len(influence), generator=generator)
        return cheapest(Problem.of(influence, budget, cost=cost, **options), seed=0).pruned
    if solver is not exhaustive:
        solver = lambda *a, f=solver, **k: f(*a, moves=20_000, **k)  # noqa: E731
    return solver(influence, budget, **options).pruned


@pytest.mark.parametrize("solver", SOLVERS)
def test_kept_and_pruned_indices_are_obeyed(solver):
    constraints = Constraints(keep=[3, 1], prune=torch.tensor([7, 5]))
    pruned = solve(solver, influence_of(14), Budget(count=6), constraints=constraints)
    assert len(pruned) == 6
    assert {5, 7} <= set(pruned.tolist())
    assert not {1, 3} & set(pruned.tolist())


@pytest.mark.parametrize("solver", SOLVERS)
@given(seed=st.integers(0, 10**6), floor=st.integers(0, 2))
def test_quotas_are_proportional(solver, seed, floor):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (16,), generator=generator)
    budget = Budget(count=6, proportional=True, min_per_class=floor)
    pruned = solve(solver, influence_of(16, seed=seed), budget, labels=labels)
    assert len(pruned) == 6
    counts = labels.bincount(minlength=4)
    kept = counts - labels[pruned].bincount(minlength=4)
    assert (kept >= counts.clamp(max=floor)).all()
    if floor == 0:
        assert ((kept - counts * 10 / 16).abs() < 1).all()


@pytest.mark.parametrize(
    ("budget", "labels", "constraints", "message"),
    [
        (Budget(count=9), [0] * 5 + [1] * 5, {},
         r"prunes 9 of 10 samples, but min_per_class=1 keeps 2 in 2 classes, which lets at most 8 "
         r"go; the nearest budget that can be met is count=8 \(fraction=0.8\)"),
        (Budget(count=5), None, {"keep": range(6)},
         r"keep= names 6 that must stay, which lets at most 4 go; the nearest .* "
         r"count=4 \(fraction=0.4\)"),
        (Budget(fraction=0.2), None, {"prune": range(4)},
         r"prunes 2 of 10 samples, but prune= names 4 that must go; .* count=4"),
        (Budget(count=6), [0] * 5 + [1] * 5, {"prune": range(5)},
         r"prune= leaves 0 samples of class 0, but min_per_class=1 keeps 1"),
        (Budget(count=5), None, {"keep": [2], "prune": [2]}, "sample 2 must be kept"),
        (Budget(count=5), None, {"keep": [10]}, "keep run from 10 to 10"),
        (Budget(count=5), None, {"prune": [1, 1]}, "prune hold 1 more than once"),
        (Budget(epsilon=1.0, max_fraction=0.3), None, {"prune": range(4)},
         "prune= names 4 samples, more than the 3 of 10 that max_fraction=0.3 allows"),
        (Budget(epsilon=1e-9), None, {"prune": [4]}, "raise epsilon to that"),
    ],
)  # fmt: skip
def test_budgets_that_cannot_be_met(budget, labels, constraints, message):
    labels = None if labels is None else torch.tensor(labels)
    with pytest.raises(ValueError, match=message):
        anneal(
            influence_of(10), budget, labels=labels, constraints=Constraints(**constraints), moves=9
        )


def test_everything_forced_leaves_nothing_to_search():
    influence = influence_of(6)
    constraints = Constraints(keep=[0, 1, 2], prune=[3, 4, 5])
    for solver in SOLVERS:
        pruned = solve(solver, influence, Budget(count=3), constraints=constraints)
        assert pruned.tolist() == [3, 4, 5]


def test_more_bad_input():
    with pytest.raises(ValueError, match="no budget can be met: name fewer samples in keep=$"):
        anneal(influence_of(6), Budget(count=3), constraints=Constraints(keep=range(6)))
    with pytest.raises(
        ValueError, match=r"no budget can be met: lower min_per_class \(0 is no floor\)$"
    ):
        anneal(influence_of(2), Budget(count=1), labels=torch.tensor([0, 1]))
    with pytest.raises(TypeError, match="keep must be whole numbers"):
        Constraints(keep=["a", "b"]).indices(2)
    with pytest.raises(ValueError, match="moves must be at least 1"):
        anneal(influence_of(6), Budget(count=3), moves=0)


@pytest.mark.parametrize("solver", [anneal, cheapest])
def test_labels_below_zero_are_named(solver):
    labels = torch.tensor([0, 1, 2, -7, 1, -1])
    with pytest.raises(ValueError, match="got -7 for sample 3 and 2 below 0 in all; give such"):
        solve(solver, influence_of(6), Budget(count=3), labels=labels)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30, 0.5, True])
def test_seeds_that_no_generator_takes(seed):
    for solver in (anneal,):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            solver(influence_of(6), Budget(count=3), seed=seed, moves=10)
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*64 - 1, got 18446744073709551616"):
        anneal(influence_of(6), Budget(count=3), seed=2**64, moves=10)


def test_the_last_seed_is_one():
    for solver in (anneal,):
        assert len(solver(influence_of(6), Budget(count=3), seed=2**64 - 1, moves=10).pruned) == 3


def test_a_plan_of_a_count_is_exact():
    plan, sampler = EpochsPlan(1, None, None, 0, 3), InfluencePrunedSampler(range(60))
    found = planned_lengths(plan, sampler, Budget(count=20), None)
    assert found == planned_lengths(plan, sampler, Budget(count=20), 1)
    assert found == [60, 40, 40]


def test_samples_named_by_an_iterator_can_be_asked_for_again():
    limits = Constraints(keep=(k for k in (3, 1)), prune=iter([5, 4]))
    for _ in range(2):
        keep, prune = limits.indices(9)
        assert (keep.tolist(), prune.tolist()) == ([1, 3], [4, 5])
