from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    BinaryCrossEntropy,
    Budget,
    ExactCurvature,
    InfluencePruner,
    KeepHead,
    Objective,
    Price,
    WantedLoss,
    anneal,
    costs,
    loss_distance,
)
from prunesampler.select.objectives import standardised


@pytest.fixture(scope="module")
def head(digits):
    """A linear head near its optimum on 300 digits, and its data."""
    x, y = (t[:300] for t in digits.tensors)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 10)).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=300, line_search_fn="strong_wolfe")
    data = TensorDataset(x.double(), y)

    def closure():
        optimizer.zero_grad()
        penalty = sum(p.square().sum() for p in model.parameters())
        loss = F.cross_entropy(model(data.tensors[0]), y) + 0.01 / 2 * penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    return model, data


def pruner(data, **options):
    defaults = {
        "budget": Budget(fraction=0.3),
        "curvature": ExactCurvature(damping=0.01),
        "progress": False,
        "solver": partial(anneal, moves=20_000),
    }
    return InfluencePruner(data, **{**defaults, **options})


def test_with_cost_alone_score_based_methods_come_out(head):
    """Against scores computed from the definitions, by autograd and torch alone."""
    model, data = head
    x, y = data.tensors
    probabilities = model(x).detach().softmax(1)
    error = (probabilities - F.one_hot(y, 10)).norm(dim=1)
    gradients = []
    for i in range(len(y)):
        model.zero_grad()
        F.cross_entropy(model(x[i : i + 1]), y[i : i + 1]).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    own = probabilities.gather(1, y[:, None])[:, 0]
    others = probabilities.scatter(1, y[:, None], -1.0).max(1).values
    expected = {
        costs.el2n: error,
        costs.grand: torch.stack(gradients).norm(dim=1),
        costs.margin: others - own,
    }
    for cost, score in expected.items():
        selection = pruner(
            data, objective=Price(cost, shift=False), budget=Budget(count=90)
        ).select(model)
        assert selection.pruned.tolist() == sorted(score.argsort()[:90].tolist())


def test_the_norm_and_self_influence_of_single_samples(head):
    model, data = head
    scores = pruner(data).measure(model)
    factor, n = scores.influence.factorised, len(data)
    centred = scores.influence.gradients.flat().double() - scores.influence.mean.flatten()
    shifts = torch.stack(
        [factor.apply_inverse(g.view(scores.influence.mean.shape)).flatten() for g in centred]
    )
    torch.testing.assert_close(costs.influence_norm(scores), shifts.norm(dim=1) / n)
    torch.testing.assert_close(costs.self_influence(scores), (shifts * centred).sum(1) / n)


@pytest.mark.slow
def test_validation_loss_predicts_retraining(head, digits):
    """Removing the samples said to harm most lowers the validation loss of the retrained head."""
    from sklearn.linear_model import LogisticRegression

    model, data = head
    held_out = TensorDataset(digits.tensors[0][300:600].double(), digits.tensors[1][300:600])
    measuring = pruner(data, objective=WantedLoss(held_out, shift=False))
    scores = measuring.measure(model)
    predicted = costs.validation_loss(scores)

    def loss(kept):
        ones = torch.ones(len(kept), 1, dtype=torch.float64)
        fit = LogisticRegression(
            C=1 / (0.01 * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
        ).fit(torch.cat([data.tensors[0][kept], ones], 1), data.tensors[1][kept])
        weights = torch.from_numpy(fit.coef_)
        x, y = held_out.tensors
        return float(F.cross_entropy(torch.cat([x, torch.ones(300, 1)], 1) @ weights.T, y))

    everyone = torch.arange(300)
    full = loss(everyone)
    chosen = torch.cat([predicted.argsort()[:5], predicted.argsort(descending=True)[:5]])
    true = torch.tensor([loss(everyone[everyone != i]) - full for i in chosen])
    assert torch.corrcoef(torch.stack([true, predicted[chosen].float()]))[0, 1] > 0.99
    few = pruner(
        data,
        objective=WantedLoss(held_out, shift=False),
        budget=Budget(count=15),
    )
    assert loss(few.select(model).kept) < full


def test_the_weight_trades_shift_for_cost(head):
    model, data = head
    cost = torch.randn(300, generator=torch.Generator().manual_seed(0))
    solver = partial(anneal, moves=100_000)
    found = []
    for weight in (0.0, 0.3, 1.0, 100.0):
        selection = pruner(data, objective=Price(cost, weight=weight), solver=solver).select(model)
        found.append((selection.shift, float(cost[selection.pruned].mean())))
    shifts, prices = zip(*found, strict=True)
    assert list(shifts) == sorted(shifts)
    assert list(prices) == sorted(prices, reverse=True)
    alone = pruner(data, objective=Price(cost, shift=False)).select(model)
    assert prices[-1] == pytest.approx(float(cost[alone.pruned].mean()), rel=0.01)
    assert shifts[0] == pruner(data, solver=solver).select(model).shift


def test_a_constant_cost_changes_nothing(head):
    model, data = head
    plain = pruner(data).select(model)
    constant = pruner(data, objective=Price(torch.ones(300))).select(model)
    assert constant.shift == pytest.approx(plain.shift, rel=0.5)


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ([1.0, 2.0], r"cost must be 300 numbers, one per sample, got shape \(2,\)"),
        ([1.0] * 299 + [float("nan")], "not finite for 1 samples, the first is sample 299"),
    ],
)
def test_bad_prices(prices, message, head):
    with pytest.raises(ValueError, match=message):
        pruner(head[1], objective=Price(prices))


@pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan")])
def test_bad_weights(weight, head):
    for make in (Price, WantedLoss):
        with pytest.raises(
            ValueError, match=f"weight must be zero or more and finite, got {weight}"
        ):
            make(head[1], weight=weight)


def test_objectives_that_are_none(head):
    for given in (Price, costs.el2n, "price"):
        with pytest.raises(TypeError, match="objective must be an object such as KeepHead"):
            pruner(head[1], objective=given)
    with pytest.raises(TypeError, match="not a map-style dataset"):
        WantedLoss(iter([1, 2]))
    with pytest.raises(TypeError, match="unexpected keyword argument 'cost'"):
        pruner(head[1], cost=costs.el2n)


def test_an_objective_of_ones_own(head):
    class ByIndex(Objective):
        shift = False

        def cost(self, scores):
            return standardised(torch.arange(300.0), weight=1.0)

    selection = pruner(head[1], objective=ByIndex(), budget=Budget(count=7)).select(head[0])
    assert selection.pruned.tolist() == list(range(7))


def test_an_objective_that_lets_nothing_count(head):
    class Nothing(Objective):
        shift = False

    with pytest.raises(ValueError, match=r"its cost\(\) returned None"):
        pruner(head[1], objective=Nothing()).select(head[0])


def test_an_objective_may_name_another_norm(head):
    class InLoss(Objective):
        metric = loss_distance

    model, data = head
    found = pruner(data, objective=InLoss()).select(model)
    expected = pruner(data, objective=KeepHead(loss_distance)).select(model)
    assert found.pruned.tolist() == expected.pruned.tolist()
    assert found.shift == expected.shift
    assert found.metadata["metric"] == "loss_distance"
    assert found.metadata["cost"] is expected.metadata["cost"] is False


def test_costs_that_cannot_be_had(head, digits):
    model, data = head
    with pytest.raises(ValueError, match="hold no wanted samples .* objective=WantedLoss"):
        pruner(data, objective=Price(costs.validation_loss)).select(model)
    with pytest.raises(ValueError, match="epsilon=1.0 says nothing about"):
        pruner(data, objective=Price(costs.el2n, shift=False), budget=Budget(epsilon=1.0)).select(
            model
        )
    binary = TensorDataset(data.tensors[0].float(), (data.tensors[1] > 4).float()[:, None])
    network = nn.Sequential(nn.Linear(64, 1))
    with pytest.raises(ValueError, match="margin needs cross-entropy"):
        pruner(binary, losses=BinaryCrossEntropy(), objective=Price(costs.margin)).select(network)
    scores = pruner(data).measure(model)
    with pytest.raises(ValueError, match="margin needs"):
        costs.margin(replace(scores, measurements=replace(scores.measurements, labels=None)))


def test_huge_costs_and_costs_that_are_none(head):
    model, data = head
    cost = torch.arange(300).double() * 1e300
    budget = Budget(count=50)
    selection = pruner(data, objective=Price(cost, shift=False), budget=budget).select(model)
    assert selection.pruned.tolist() == list(range(50))
    nothing = Price(lambda scores: None, shift=False)
    with pytest.raises(TypeError, match="cost must be numbers"):
        pruner(data, objective=nothing, budget=budget).select(model)
