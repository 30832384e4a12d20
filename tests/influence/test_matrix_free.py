import json
import math

import numpy as np
import pytest
import torch
from samples import cross_entropy_samples
from test_blocks import gauss_newton
from test_curvature import LOSSES, samples
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    AutoCurvature,
    BlockCurvature,
    Budget,
    Constraints,
    InfluencePruner,
    Price,
    WantedLoss,
    costs,
)
from prunesampler.influence import conjugate
from prunesampler.influence.conjugate import TOLERANCE, conjugate_gradients
from prunesampler.influence.factorised import IdentityFactorised
from prunesampler.influence.matrix_free import MatrixFree


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("stack", [(), (1,), (3,), (2, 3)])
def test_products_and_inverses_are_those_of_the_dense_matrix(name, stack):
    measured, _ = samples(*LOSSES[name])
    matrix, size = gauss_newton(measured, 0.05), math.prod(measured.shape)
    found = BlockCurvature(damping=0.05).factorise(measured)
    assert isinstance(found, MatrixFree)
    assert (found.damping, found.iterative, found.residuals) == (0.05, True, [])
    given = torch.randn(*stack, *measured.shape, dtype=torch.float64)
    flat = given.reshape(-1, size)
    torch.testing.assert_close(found.multiply(given), (flat @ matrix).reshape(given.shape))
    solved = found.apply_inverse(given)
    expected = torch.linalg.solve(matrix, flat.T).T.reshape(given.shape)
    assert solved.dtype == torch.float64
    assert solved.shape == given.shape
    assert float((solved - expected).norm()) <= 2 * TOLERANCE * float(expected.norm())
    assert len(found.residuals) == math.prod(stack)
    assert max(found.residuals) <= TOLERANCE


def test_single_precision_measurements_of_more_classes():
    measured = cross_entropy_samples(500, 12, 20)
    found = BlockCurvature(damping=1e-3).factorise(measured)
    given = torch.randn(measured.shape)
    expected = torch.linalg.solve(gauss_newton(measured, 1e-3), given.double().flatten())
    solved = found.apply_inverse(given).flatten()
    assert float((solved - expected).norm()) <= 5e-3 * float(expected.norm())


def test_steps_that_run_out_leave_a_residual_that_tells(monkeypatch):
    measured = cross_entropy_samples(300, 5, 18)
    found = MatrixFree(measured, IdentityFactorised(), damping=1e-6)
    given = measured.rows().sum() / 300
    exact = torch.linalg.solve(gauss_newton(measured, 1e-6), given.flatten()).view(given.shape)

    def two_steps(product, target, precondition):
        return conjugate_gradients(product, target, precondition, most_steps=2)

    monkeypatch.setattr("prunesampler.influence.matrix_free.conjugate_gradients", two_steps)
    short = found.apply_inverse(given)
    assert found.residuals[0] > TOLERANCE
    assert float(short.norm()) < float(exact.norm())
    left = given - found.multiply(short)
    assert found.residuals[0] == pytest.approx(float(left.norm() / given.norm()), rel=1e-6)
    assert conjugate.MOST_STEPS > 2
    monkeypatch.undo()
    found.apply_inverse(torch.stack([given, 2 * given]))
    assert len(found.residuals) == 3
    assert max(found.residuals[1:]) <= TOLERANCE


def test_the_block_curvature_refuses_zero_damping_by_its_value():
    measured, _ = samples(*LOSSES["softmax"])
    for made, damping in ((BlockCurvature(damping=0.0), None), (BlockCurvature(), 0.0)):
        with pytest.raises(ValueError, match=r"needs a positive damping, got 0; .* or None"):
            made.factorise(measured, damping)
    with pytest.raises(ValueError, match=r"damping must be zero or more and finite, got -1"):
        BlockCurvature(damping=-1.0)


@pytest.mark.parametrize("name", LOSSES)
def test_the_default_damping_is_a_thousandth_of_the_mean_eigenvalue(name):
    measured, _ = samples(*LOSSES[name])
    matrix = measured.gauss_newton(torch.float64)
    mean = float(matrix.trace()) / len(matrix)
    assert measured.parameters == len(matrix)
    assert measured.mean_eigenvalue() == pytest.approx(mean)
    found = BlockCurvature().factorise(measured)
    assert found.damping == pytest.approx(1e-3 * mean)
    assert found.damping == pytest.approx(AutoCurvature().factorise(measured).damping)


SIZE = 600


@pytest.fixture(scope="module")
def large():
    """A head of 99 * 129 parameters, its data, and their scores by the default pruner."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SIZE) % 100
    inputs = torch.randn(100, 128, generator=generator)[labels]
    inputs += torch.randn(SIZE, 128, generator=generator)
    inputs /= torch.arange(1, 129) ** 3  # else 0.05 samples per parameter leave nothing to choose
    model = nn.Linear(128, 100)
    model.weight.data = 0.1 * torch.randn(100, 128, generator=generator)
    model.bias.data.zero_()
    data = TensorDataset(inputs, labels)
    scores = InfluencePruner(data, budget=Budget(fraction=0.4), progress=False).measure(model)
    return data, model, scores.state_dict()


def pruner_of(data, budget=None, **options):
    budget = Budget(fraction=0.4) if budget is None else budget
    return InfluencePruner(data, budget=budget, progress=False, **options)


def direct_shift(measured, damping, pruned, kept=None):
    """Norm of the shift to nine digits, by products that are written out here."""
    p, a = measured.hessian.probabilities.double(), measured.inputs.double()
    g, n = measured.delta.double(), len(measured)
    if kept is not None:
        p, a = p[kept], a[kept]
    mean = g.T @ measured.inputs.double() / n
    target = g[pruned].T @ measured.inputs.double()[pruned] - len(pruned) * mean

    def product(x):
        seen = a @ x.T
        bent = p * (seen - (p * seen).sum(1, keepdim=True))
        return bent.T @ a / len(a) + damping * x

    solved = conjugate_gradients(product, target, lambda r: r, tolerance=1e-9, most_steps=20_000)
    assert solved.residual <= 1e-9
    return float(solved.solution.norm()) / (n - len(pruned))


def test_a_large_head_is_selected_from_by_default(large):
    data, model, state = large
    pruner = pruner_of(data, seed=3)
    selection = pruner.select(model)
    facts = selection.metadata
    assert len(selection.pruned) == 240
    assert facts["curvature"] == "BlockCurvature"
    assert facts["parameters"] == 99 * 129
    assert 0 < facts["residual"] <= 1e-3
    assert selection.curvature_share is None
    assert "approximate" not in selection.verdict
    assert json.loads(json.dumps(facts)) == facts
    measured = pruner.scores_from(state).measurements
    shift = direct_shift(measured, facts["damping"], selection.pruned)
    newton = direct_shift(measured, facts["damping"], selection.pruned, selection.kept)
    assert selection.shift == pytest.approx(shift, rel=2e-3)
    assert selection.newton_shift == pytest.approx(newton, rel=5e-3)
    assert selection.ratio < 0.9  # 0.05 samples per parameter: there is little to choose
    again = pruner_of(data, seed=3).select(model)
    restored = pruner.scores_from(state)
    from_state = pruner._selector.select(restored, None)
    assert torch.equal(again.pruned, selection.pruned)
    assert torch.equal(from_state.pruned, selection.pruned)
    assert from_state.shift == selection.shift
    assert not torch.equal(pruner_of(data, seed=4).select(model).pruned, selection.pruned)
    assert type(selection).from_bytes(selection.to_bytes()).metadata == facts


def test_budgets_and_constraints_hold_for_a_large_head(large):
    data, _, state = large
    labels = data.tensors[1]

    def select(budget, **options):
        pruner = pruner_of(data, budget, **options)
        return pruner._selector.select(pruner.scores_from(state), None)

    floors = select(Budget(count=320, min_per_class=2))
    assert len(floors.pruned) == 320
    assert int(torch.bincount(labels[floors.kept], minlength=100).min()) >= 2
    even = select(Budget(fraction=0.5, proportional=True))
    assert torch.bincount(labels[even.kept]).tolist() == [3] * 100
    keep, prune = torch.arange(100), torch.arange(300, 350)
    held = select(Budget(count=200), constraints=Constraints(keep=keep, prune=prune))
    assert len(held.pruned) == 200
    assert not torch.isin(keep, held.pruned).any()
    assert torch.isin(prune, held.pruned).all()
    epsilon = held.shift
    within = select(Budget(epsilon=epsilon, max_fraction=0.5))
    assert within.shift <= epsilon
    assert len(within.pruned) >= 200  # fewer constraints


def test_redraws_and_frontiers_of_a_large_head(large):
    data, model, state = large
    pruner = pruner_of(data)
    scores = pruner.scores_from(state)
    first = pruner._selector.select(scores, None)
    same = pruner.redraw(scores, torch.zeros(SIZE, dtype=torch.int64))
    assert torch.equal(same.pruned, first.pruned)
    assert math.isnan(same.newton_shift)
    ages = torch.full((SIZE,), -1)
    ages[first.pruned] = 1
    next_one = pruner.redraw(scores, ages, certify=True)
    assert len(next_one.pruned) == 240
    assert not torch.isin(next_one.pruned, first.pruned).any()
    assert next_one.newton_shift > 0
    frontier = pruner.frontier(model, (0.5, 0.2))
    assert [len(s.pruned) for s in frontier.selections] == [120, 300]
    assert np.isnan(frontier.array[:, 4]).all()  # the share of the curvature is not computed
    assert len(str(frontier).splitlines()) == 4


def test_objectives_for_a_large_head(large):
    data, model, state = large
    generator = torch.Generator().manual_seed(1)
    wanted = TensorDataset(torch.randn(30, 128, generator=generator), torch.arange(30))
    target = pruner_of(data, objective=WantedLoss(wanted, weight=5.0)).select(model)
    assert len(target.pruned) == 240
    price = Price(costs.el2n, weight=2.0)
    pruner = pruner_of(data, objective=price)
    scores = pruner.scores_from(state)
    prices = price.cost(scores)
    priced, plain = (p._selector.select(scores, None).pruned for p in (pruner, pruner_of(data)))
    assert float(prices[priced].mean()) < float(prices[plain].mean()) - 0.5
    alone = pruner_of(data, objective=Price(costs.el2n, shift=False))._selector.select(scores, None)
    assert float(prices[alone.pruned].mean()) < float(prices[priced].mean())
