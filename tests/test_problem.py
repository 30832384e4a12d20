import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from test_influence import cross_entropy_samples

from prunesampler import (
    Budget,
    Constraints,
    Influence,
    InfluencePrunedSampler,
    KroneckerCurvature,
    anneal,
    cheapest,
    exchange,
    exhaustive,
)
from prunesampler.solve.problem import Problem
from prunesampler.train.epochs import EpochsPlan
from prunesampler.train.steps import planned_lengths

SOLVERS = [anneal, exchange, exhaustive, cheapest]


def influence_of(n, dimensions=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Influence.from_vectors(
        torch.randn(n, dimensions, generator=generator, dtype=torch.float64)
    )


def solve(solver, influence, budget, **options):
    if solver is cheapest:
        generator = torch.Generator().manual_seed(len(influence))
        options["cost"] = torch.randn(len(influence), generator=generator)
    elif solver is not exhaustive:
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
@given(seed=st.integers(0, 10**6))
def test_groups_stay_or_go_together_and_floors_hold(solver, seed):
    generator = torch.Generator().manual_seed(seed)
    n = 16
    groups = torch.randint(-1, 9, (n,), generator=generator)
    labels = torch.randint(0, 3, (n,), generator=generator)
    size = int(torch.randint(5, 11, (), generator=generator))
    options = {"labels": labels, "constraints": Constraints(groups=groups)}
    influence, budget = influence_of(n, seed=seed), Budget(count=size)
    median = int(Problem.of(influence, budget, **options).sizes().median())
    least, most = Problem.of(influence, budget, **options).range(size)
    assume(least <= size <= most)
    pruned = solve(solver, influence, budget, **options)
    gone = torch.zeros(n, dtype=torch.bool)
    gone[pruned] = True
    for group in range(9):
        assert len(gone[groups == group].unique()) <= 1
    assert len(pruned) <= size
    if median == 1 and (groups < 0).sum() > 8 and solver is exhaustive:
        assert len(pruned) == size
    assert (
        torch.bincount(labels[~gone], minlength=3) >= labels.bincount(minlength=3).clamp(max=1)
    ).all()


def test_groups_of_one_size_are_searched_to_the_optimum():
    groups = torch.arange(36) // 3
    for seed in range(20):
        influence, budget = influence_of(36, 3, seed), Budget(count=15)
        options = {"constraints": Constraints(groups=groups)}
        best = exhaustive(influence, budget, **options)
        found = anneal(influence, budget, moves=100_000, seed=seed, **options)
        assert len(best.pruned) == len(found.pruned) == 15
        assert found.norm == pytest.approx(best.norm, rel=1e-5)


def test_groups_of_many_sizes_come_near_the_budget():
    sizes = torch.randint(1, 40, (60,), generator=torch.Generator().manual_seed(0))
    groups = torch.repeat_interleave(torch.arange(60), sizes)
    influence, n = influence_of(len(groups), 3), len(groups)
    found = anneal(influence, Budget(fraction=0.4), constraints=Constraints(groups=groups))
    size = Budget(fraction=0.4).count_of(n)
    assert size - int(sizes.median()) < len(found.pruned) <= size
    drawn = torch.randperm(n, generator=torch.Generator().manual_seed(1))[:size]
    assert found.norm < 0.1 * influence.shift_norm(drawn)


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


def test_groups_that_mix_classes_keep_the_floors():
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 2, 2])
    groups = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    for seed in range(10):
        found = anneal(
            influence_of(8, seed=seed), Budget(count=3, min_per_class=2), labels=labels, moves=500,
            constraints=Constraints(groups=groups), seed=seed,
        )  # fmt: skip
        kept = labels.bincount() - labels[found.pruned].bincount(minlength=3)
        assert (kept >= 2).all()
        assert len(found.pruned) == 2  # one group of classes 0 and 1


@pytest.mark.parametrize(
    ("budget", "labels", "constraints", "message"),
    [
        (Budget(count=9), [0] * 5 + [1] * 5, {},
         r"prunes 9 of 10 samples, but min_per_class=1 keeps 2 in 2 classes, which lets at most 8 "
         r"go; the nearest budget that can be met is count=8 \(fraction=0.8\)"),
        (Budget(count=5), None, {"keep": range(6)},
         r"keep= and its groups name 6 that must stay, which lets at most 4 go; the nearest .* "
         r"count=4 \(fraction=0.4\)"),
        (Budget(fraction=0.2), None, {"prune": range(4)},
         r"prunes 2 of 10 samples, but prune= and its groups name 4 that must go; .* count=4"),
        (Budget(count=3), None, {"groups": [0] * 5 + [1] * 5},
         r"the smallest group that is left has 5; .* count=5"),
        (Budget(count=6), [0] * 5 + [1] * 5, {"prune": range(5)},
         r"prune= leaves 0 samples of class 0, but min_per_class=1 keeps 1"),
        (Budget(count=5), None, {"keep": [2], "prune": [2]}, "sample 2 must be kept"),
        (Budget(count=5), None, {"keep": [1], "prune": [2], "groups": [0] * 3 + [-1] * 7},
         "sample 1 must be kept"),
        (Budget(count=5), None, {"keep": [10]}, "keep run from 10 to 10"),
        (Budget(count=5), None, {"prune": [1, 1]}, "prune hold 1 more than once"),
        (Budget(count=5), None, {"groups": [0, 1]}, "groups must be 10 whole numbers"),
        (Budget(count=5), None, {"groups": [-2] * 10}, "-1 for a sample of its own, .* with a -2"),
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


def test_groups_of_words_are_refused():
    with pytest.raises(TypeError, match="number them"):
        Constraints(groups=["a", "b"]).checked(2)


def test_everything_forced_leaves_nothing_to_search():
    influence = influence_of(6)
    constraints = Constraints(keep=[0, 1, 2], prune=[3, 4, 5])
    for solver in SOLVERS:
        pruned = solve(solver, influence, Budget(count=3), constraints=constraints)
        assert pruned.tolist() == [3, 4, 5]


@pytest.mark.parametrize("solver", [anneal, exchange])
@pytest.mark.parametrize("count", [20, 47, 50])
def test_lone_samples_fill_what_groups_leave_open(solver, count):
    groups = torch.repeat_interleave(torch.arange(18), torch.tensor([1] * 11 + [7] * 7))
    pruned = solve(
        solver, influence_of(60, 3), Budget(count=count), constraints=Constraints(groups=groups)
    )
    assert len(pruned) == count


@pytest.mark.parametrize("solver", [anneal, exchange])
def test_groups_with_rank_one_rows(solver):
    samples = cross_entropy_samples(200, 3, 4)
    influence = Influence.build(samples.rows(), KroneckerCurvature().factorise(samples))
    constraints = Constraints(groups=torch.arange(200) // 4)
    found = solver(influence, Budget(fraction=0.4), constraints=constraints, moves=50_000)
    drawn = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:80]
    assert found.norm < 0.3 * influence.shift_norm(drawn)


def test_more_bad_input():
    with pytest.raises(ValueError, match="no budget can be met"):
        anneal(influence_of(6), Budget(count=3), constraints=Constraints(groups=[0] * 6))
    with pytest.raises(ValueError, match="groups must be 2 whole numbers"):
        Constraints(groups=torch.tensor([True, False])).checked(2)
    with pytest.raises(ValueError, match="tile must be at least 1"):
        exchange(influence_of(6), Budget(count=3), tile=0)
    with pytest.raises(ValueError, match="moves must be at least 1"):
        anneal(influence_of(6), Budget(count=3), moves=0)


@pytest.mark.parametrize("solver", [anneal, exchange, cheapest])
def test_labels_below_zero_are_named(solver):
    labels = torch.tensor([0, 1, 2, -7, 1, -1])
    with pytest.raises(ValueError, match="got -7 for sample 3 and 2 below 0 in all; give such"):
        solve(solver, influence_of(6), Budget(count=3), labels=labels)


@pytest.mark.parametrize("seed", [-1, 2**64, 10**30, 0.5, True])
def test_seeds_that_no_generator_takes(seed):
    for solver in (anneal, exchange):
        with pytest.raises(ValueError, match="seed must be a whole number"):
            solver(influence_of(6), Budget(count=3), seed=seed, moves=10)
    with pytest.raises(ValueError, match=r"from 0 to 2\*\*64 - 1, got 18446744073709551616"):
        anneal(influence_of(6), Budget(count=3), seed=2**64, moves=10)


def test_the_last_seed_is_one():
    for solver in (anneal, exchange):
        assert len(solver(influence_of(6), Budget(count=3), seed=2**64 - 1, moves=10).pruned) == 3


SCHEDULE = EpochsPlan(1, None, None, 0, 3)


@pytest.mark.parametrize("solver", [anneal, exchange, cheapest])
@given(seed=st.integers(0, 10**6))
def test_a_plan_with_groups_is_never_too_short(solver, seed):
    """The schedule of the learning rate ended before the run did, which is an error."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.randint(-1, 12, (60,), generator=generator)
    constraints = Constraints(groups=groups)
    budget = Budget(count=int(torch.randint(15, 50, (), generator=generator)))
    sampler, largest = InfluencePrunedSampler(range(60)), int(groups[groups >= 0].bincount().max())
    with pytest.warns(UserWarning, match=f"groups of up to {largest} samples the kept samples"):
        first, *rest = planned_lengths(SCHEDULE, sampler, budget, None, constraints)
    kept = 60 - len(solve(solver, influence_of(60), budget, constraints=constraints))
    assert first == 60
    assert rest[0] == rest[1] == 60 - budget.count + largest - 1 >= kept
    assert planned_lengths(SCHEDULE, sampler, budget, kept, constraints) == [60, kept, kept]
    sampler.restrict(range(kept))  # a run that resumed
    assert planned_lengths(SCHEDULE, sampler, budget, None, constraints) == [60, kept, kept]


def test_a_plan_with_groups_and_floors_promises_less():
    constraints = Constraints(groups=torch.arange(60) // 3)
    sampler = InfluencePrunedSampler(range(60))
    for budget in (Budget(count=30, min_per_class=2), Budget(count=30, proportional=True)):
        with pytest.warns(UserWarning, match="groups of up to 3 samples and floors per class"):
            assert planned_lengths(SCHEDULE, sampler, budget, None, constraints) == [60, 60, 60]


@pytest.mark.parametrize(
    "constraints", [None, Constraints(keep=[1]), Constraints(groups=[-1] * 60)]
)
def test_a_plan_without_groups_is_exact(constraints):
    sampler = InfluencePrunedSampler(range(60))
    found = planned_lengths(SCHEDULE, sampler, Budget(count=20), None, constraints)
    assert found == planned_lengths(SCHEDULE, sampler, Budget(count=20), 1, constraints)
    assert found == [60, 40, 40]
