from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from exhaustive import exhaustive
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler import (
    BlockCurvature,
    Budget,
    Constraints,
    CrossEntropy,
    ExactCurvature,
    Influence,
    anneal,
)
from prunesampler.base.indices import complement
from prunesampler.influence.certificate import newton_shift
from prunesampler.influence.factorised import IdentityFactorised
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.rows import RankOne
from prunesampler.influence.sparse import SparseRows
from prunesampler.solve.flips import _Flips, flip
from prunesampler.solve.problem import Problem
from prunesampler.solve.solvers import cheapest

quick = partial(anneal, moves=20_000)


def softmax_samples(n, classes=4, features=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.cat([torch.randn(n, features, generator=generator), torch.ones(n, 1)], 1)
    outputs = torch.randn(n, classes, generator=generator)
    labels = torch.randint(0, classes, (n,), generator=generator)
    values, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    return Measurements(delta, inputs, hessian, values, labels)


def sparse_influence(measured, damping=0.01, center=True):
    curvature = BlockCurvature(damping=damping).factorise(measured)
    found = Influence.build(measured.rows(), curvature, center=center)
    assert isinstance(found.whitened, SparseRows)
    return found


def searched_in(influence, chosen):
    """Norm, among the whitened rows, of the centred sum of a set: what flips make small."""
    total = influence.whitened.sum(chosen) - len(chosen) * influence.whitened_mean
    return influence.whitened.square(total.numpy()) ** 0.5


@settings(max_examples=30)
@given(st.integers(2, 24), st.integers(0, 10**6), st.integers(1, 9), st.data())
def test_any_count_is_met_exactly(n, seed, sweeps, data):
    count = data.draw(st.integers(1, n - 1))
    influence = sparse_influence(softmax_samples(n, seed=seed))
    problem = Problem.of(influence, Budget(count=count))
    pruned = flip(problem, count, seed, sweeps, None)
    assert (pruned.shape, pruned.dtype) == ((n,), np.bool_)
    assert int(pruned.sum()) == count


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.booleans(), st.integers(0, 4), st.data())
def test_floors_quotas_and_constraints_are_kept(seed, proportional, floor, data):
    measured = softmax_samples(60, seed=seed)
    influence, labels = sparse_influence(measured), measured.labels
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    keep, prune = order[:4], order[4 : 4 + data.draw(st.integers(0, 3))]
    budget = Budget(
        count=data.draw(st.integers(5, 55)), min_per_class=floor, proportional=proportional
    )
    limits = Constraints(keep=keep, prune=prune)
    try:
        Problem.of(influence, budget, labels, limits).count()
    except ValueError:
        return  # cannot be met, and the solver says so
    found = quick(influence, budget, labels=labels, constraints=limits, seed=seed, moves=600)
    assert len(found.pruned) == budget.count
    assert not torch.isin(keep, found.pruned).any()
    assert torch.isin(prune, found.pruned).all()
    kept = torch.bincount(labels[complement(found.pruned, 60)], minlength=4)
    floors = budget.floors(labels, budget.count)
    if floors is not None:
        assert (kept >= floors).all()
    if proportional and int(floors.sum()) == 60 - budget.count:
        assert torch.equal(kept, floors)


def test_a_cost_pulls_towards_cheap_samples_and_a_large_one_decides():
    influence = sparse_influence(softmax_samples(300))
    cost = torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    budget, means = Budget(count=120), []
    for weight in (0.0, 0.3, 3.0, 1e4):
        pruned = quick(influence, budget, cost=weight * cost).pruned
        means.append(float(cost[pruned].mean()))
    best = cheapest(Problem.of(influence, budget, cost=cost), seed=0).pruned
    assert torch.equal(pruned, best)
    assert means[0] > means[1] > means[2] >= means[3]
    assert abs(means[0]) < 0.3


@pytest.mark.parametrize(("count", "most"), [(100, 0.45), (500, 0.25), (900, 0.45)])
def test_sets_are_far_better_than_random_ones(count, most):
    """Five samples for each of 200 parameters."""
    measured = softmax_samples(1000, classes=11, features=19)
    influence = sparse_influence(measured, damping=0.001)
    found = anneal(influence, Budget(count=count))
    generator = torch.Generator().manual_seed(7)
    sets = [torch.randperm(1000, generator=generator)[:count] for _ in range(20)]
    random = float(np.median([searched_in(influence, chosen) for chosen in sets]))
    assert searched_in(influence, found.pruned) < most * random
    exact = Influence.build(measured.rows(), ExactCurvature(damping=0.001).factorise(measured))
    assert found.norm == pytest.approx(exact.shift_norm(found.pruned), rel=5e-3)
    assert found.norm < 1.3 * most * exact.shift_norm(sets[0])


@pytest.mark.parametrize("center", [False, True])
def test_tiny_problems_are_solved_nearly_to_the_optimum(center):
    """In the metric that flips see: whitened rows, written out as plain vectors."""
    shares = []
    for seed in range(40):
        measured = softmax_samples(14, seed=seed)
        measured = replace(measured, delta=measured.delta + torch.tensor([0.5, -0.5, 0.0, 0.0]))
        influence = sparse_influence(measured, damping=0.1, center=center)
        budget, vectors = Budget(count=3 + seed % 8), explicit(influence.whitened)
        plain = Influence.build(RankOne.from_vectors(vectors), IdentityFactorised(), center=center)
        problem, best = Problem.of(influence, budget), exhaustive(plain, budget).norm
        flipped = problem.samples(flip(problem, budget.count, seed, 2000, None))
        shares.append(plain.shift_norm(flipped) / best)
        summed = plain.shift_norm(flipped) * (14 - budget.count)
        assert summed == pytest.approx(searched_in(influence, flipped), rel=1e-2)
    assert 1 - 1e-6 < min(shares) <= max(shares) < 4
    assert float(np.median(shares)) < 1.4


def explicit(rows):
    """Vectors with the same inner products as the sparse rows, float64, shape (n, n)."""
    n = len(rows)
    totals = [rows.sum(torch.tensor([i])) for i in range(n)]
    width, base = rows.inputs.shape[1], torch.from_numpy(rows.base).double()
    own = torch.stack([(base.sqrt()[:, None] * t[:, :width]).flatten() for t in totals])
    covered = torch.stack([t[:, width:].flatten() for t in totals])
    values, turned = torch.linalg.eigh(own @ own.T - covered @ covered.T)
    return turned * values.clamp(min=0).sqrt()


def test_progress_is_told_every_sweep_to_the_end():
    problem, calls = Problem.of(sparse_influence(softmax_samples(30)), Budget(count=9)), []
    flip(problem, 9, 0, 13, lambda done, total: calls.append((done, total)))
    assert calls == [(k, 13) for k in range(1, 14)]


def test_the_same_seed_gives_the_same_set_and_another_seed_another():
    influence = sparse_influence(softmax_samples(300))
    before = torch.get_rng_state(), np.random.get_state()[1]
    first, again, other = (quick(influence, Budget(count=99), seed=s).pruned for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


@pytest.mark.parametrize("silent", [50, 29, 1])
def test_rows_of_zeros(silent):
    """All samples, all but some, or one have no gradient at all."""
    measured = softmax_samples(50)
    delta = measured.delta.clone()
    delta[:silent] = 0.0
    influence = sparse_influence(replace(measured, delta=delta))
    for count in (1, 20, 49):
        assert len(quick(influence, Budget(count=count)).pruned) == count
    if silent == 50:
        assert quick(influence, Budget(count=20)).norm == 0.0


def test_a_single_free_sample_is_settled_by_the_count():
    influence = sparse_influence(softmax_samples(25))
    limits = Constraints(keep=torch.arange(14), prune=torch.arange(15, 25))
    for count in (10, 11):
        found = quick(influence, Budget(count=count), constraints=limits, moves=50)
        assert found.pruned.tolist() == list(range(25 - count, 25))


def test_epsilon_with_quotas_that_constraints_contradict_ends(monkeypatch):
    refresh, calls = _Flips.refresh, []

    def counted(search):
        calls.append(search)
        if len(calls) > 10_000:
            raise TimeoutError("the search goes on for ever")
        refresh(search)

    monkeypatch.setattr(_Flips, "refresh", counted)
    influence, labels = sparse_influence(softmax_samples(20)), torch.arange(20) % 2
    budget, limits = Budget(epsilon=1e9, proportional=True), Constraints(keep=range(0, 20, 2))
    found = quick(influence, budget, labels=labels, constraints=limits)
    assert (found.pruned % 2 == 1).all()


def refit(inputs, labels, penalty, start):
    """The optimum of the mean cross-entropy plus ``penalty / 2`` times the squared norm."""
    weights = start.clone().requires_grad_()
    options = {"max_iter": 3000, "tolerance_grad": 1e-9, "tolerance_change": 0.0}
    search = torch.optim.LBFGS([weights], line_search_fn="strong_wolfe", **options)

    def closure():
        search.zero_grad()
        loss = torch.nn.functional.cross_entropy(inputs @ weights.T, labels)
        (loss + penalty / 2 * weights.square().sum()).backward()
        return loss + penalty / 2 * weights.square().sum()

    search.step(closure)
    closure()
    assert float(weights.grad.norm()) < 1e-8
    return weights.detach()


def test_a_head_of_a_hundred_classes_is_retrained_to_where_the_newton_shift_says():
    generator, penalty = torch.Generator().manual_seed(0), 0.01
    labels = torch.randint(0, 100, (1500,), generator=generator)
    centres = torch.randn(100, 20, generator=generator, dtype=torch.float64)
    noise = torch.randn(1500, 20, generator=generator, dtype=torch.float64)
    inputs = centres[labels] + 0.7 * noise
    full = refit(inputs, labels, penalty, torch.zeros_like(centres))
    values, delta, hessian = CrossEntropy().derivatives(inputs @ full.T, labels)
    measured = Measurements(delta, inputs, hessian, values, labels)
    curvature, influence = BlockCurvature(damping=penalty), sparse_influence(measured, penalty)
    drawn = torch.randperm(1500, generator=generator)[:450]
    changes = []
    for pruned in (anneal(influence, Budget(count=450), labels=labels).pruned, drawn):
        kept = complement(pruned.sort().values, 1500)
        near = curvature.refactorise(measured[kept], influence.factorised)
        newton = newton_shift(near, influence, pruned)
        change = hessian.basis().T @ (refit(inputs[kept], labels[kept], penalty, full) - full)
        assert float((newton - change).norm()) <= 0.1 * float(change.norm())
        changes.append(float(change.norm()))
    assert changes[0] < 0.6 * changes[1]


def test_few_samples_out_of_many_are_as_good_as_the_shortest_rows():
    influence = sparse_influence(softmax_samples(400, seed=3), damping=0.1)
    for count in (1, 2, 5):
        found = anneal(influence, Budget(count=count, min_per_class=0))
        shortest = torch.from_numpy(np.argsort(influence.whitened.squares())[:count].copy())
        assert found.norm <= 1.5 * influence.shift_norm(shortest.sort().values)
