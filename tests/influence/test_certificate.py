import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from samples import cross_entropy_samples
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    BinaryCrossEntropy,
    Budget,
    CrossEntropy,
    ExactCurvature,
    HeadGradients,
    IdentityCurvature,
    Influence,
    InfluencePruner,
    KeepHead,
    KroneckerCurvature,
    SquaredError,
    anneal,
    loss_distance,
    parameter_distance,
)
from prunesampler.base.indices import complement
from prunesampler.influence.certificate import (
    curvature_share,
    loss_bound,
    newton_shift,
    random_newton_shift,
    random_shift,
)
from prunesampler.influence.rows import CHUNK
from prunesampler.influence.states import read_measurements, read_name
from prunesampler.select.selector import Selector
from prunesampler.solve.problem import Solution

# Random sets, and forced ones, are what is certified here: they are no better than random.
pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")


def ridge(x, y, penalty):
    """Minimiser of mean squared error plus penalty / 2 times the squared weights."""
    size = x.shape[1]
    return torch.linalg.solve(
        2 * x.T @ x / len(x) + penalty * torch.eye(size), 2 * x.T @ y / len(x)
    )


def test_the_newton_shift_of_a_quadratic_loss_is_the_truth():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(80, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    full = ridge(x, y, 0.1)
    model[0].weight.data = full[None]
    pruner = InfluencePruner(
        TensorDataset(x, y), budget=Budget(fraction=0.4), losses=SquaredError(),
        curvature=ExactCurvature(damping=0.1), progress=False,
    )  # fmt: skip
    selection = pruner.select(model)
    kept = selection.kept
    true = float((ridge(x[kept], y[kept], 0.1) - full).norm())
    assert selection.newton_shift == pytest.approx(true, rel=1e-6)
    assert selection.bound >= true


@pytest.mark.parametrize("seed", range(50))
def test_the_bounds_hold_against_retraining(seed):
    rng = np.random.default_rng(seed)
    n, features, classes, penalty = 120, 4, 3, 10.0 ** rng.uniform(-3, -1)
    centres = rng.normal(size=(classes, features))
    y = rng.integers(classes, size=n)
    x = centres[y] + rng.normal(size=(n, features))
    test_y = rng.integers(classes, size=n)
    test_x = centres[test_y] + rng.normal(size=(n, features))
    test_x *= np.linalg.norm(x, axis=1).mean() / np.linalg.norm(test_x, axis=1).mean()

    def fit(kept):
        regression = LogisticRegression(
            C=1 / (penalty * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
        )
        return torch.from_numpy(regression.fit(x[kept], y[kept]).coef_)

    def test_loss(weights):
        outputs = torch.from_numpy(test_x) @ weights.T
        return float(torch.nn.functional.cross_entropy(outputs, torch.from_numpy(test_y)))

    full = fit(np.arange(n))
    model = nn.Sequential(nn.Linear(features, classes, bias=False)).double()
    model[0].weight.data = full
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    solver = _random if seed % 2 else partial(anneal, moves=5000)
    for fraction in (0.1, 0.5, 0.9):
        selection = InfluencePruner(
            data, budget=Budget(fraction=fraction), progress=False, seed=seed,
            curvature=ExactCurvature(damping=penalty), solver=solver,
        ).select(model)  # fmt: skip
        again = fit(selection.kept.numpy())
        true = float((again - full).norm())
        assert true <= selection.bound
        assert abs(test_loss(again) - test_loss(full)) <= selection.loss_bound
        if fraction == 0.1:
            assert selection.newton_shift == pytest.approx(true, rel=0.25)


def test_the_loss_bound_is_lipschitz_constant_times_input_norm():
    inputs = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    assert loss_bound(0.5, inputs, 2.0) == pytest.approx(0.5 * 2.0 * 3.0)
    assert CrossEntropy().lipschitz == pytest.approx(2**0.5)
    assert CrossEntropy(weight=torch.tensor([1.0, 3.0])).lipschitz == pytest.approx(3 * 2**0.5)
    assert BinaryCrossEntropy().lipschitz is None
    assert SquaredError().lipschitz is None


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(label_smoothing=0.2)])
def test_no_gradient_is_longer_than_the_lipschitz_constant(loss):
    outputs = 30 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0))
    delta = loss.derivatives(outputs, torch.arange(500) % 5).delta
    assert (
        0.9 * loss.lipschitz * (1 - loss.label_smoothing)
        < delta.norm(dim=1).max()
        <= loss.lipschitz
    )


@pytest.mark.parametrize(
    "curvature", [ExactCurvature(damping=1e-4), KroneckerCurvature(damping=1e-4)]
)
@pytest.mark.parametrize("seed", range(5))
def test_the_curvature_share_is_the_smallest_generalised_eigenvalue(curvature, seed):
    samples = cross_entropy_samples(150, 3 + seed, 6)
    full = curvature.factorise(samples)
    kept = curvature.factorise(samples[torch.arange(15)], 1e-4)
    shape = samples.rows().shape
    size = shape[0] * shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    ours = full.multiply(basis).reshape(size, size)
    theirs = kept.multiply(basis).reshape(size, size)
    values = torch.linalg.eigvals(torch.linalg.solve(ours, theirs)).real
    assert curvature_share(kept, full, shape) == pytest.approx(float(values.min()), rel=1e-3)
    assert curvature_share(full, full, shape) == pytest.approx(1.0)


def test_where_little_curvature_is_left_the_certificate_says_so(few_digits):
    model = nn.Sequential(nn.Linear(64, 10))
    for most, little in ((0.9, True), (0.05, False)):
        selection = InfluencePruner(
            few_digits, budget=Budget(epsilon=1e3, max_fraction=most), progress=False,
            curvature=ExactCurvature(damping=1e-3), solver=partial(anneal, moves=3000),
        ).select(model)  # fmt: skip
        assert len(selection.pruned) == 200 * most
        assert ("so little that" in selection.certificate) is little
        assert (selection.curvature_share < 0.1) is little


def test_the_certificate_says_what_holds_when(few_digits):
    model = nn.Sequential(nn.Linear(64, 10))
    options = {"budget": Budget(count=20), "progress": False}
    with_penalty = InfluencePruner(few_digits, curvature=ExactCurvature(damping=0.1), **options)
    proved, predicted, rest = with_penalty.select(model).certificate.splitlines()
    assert "L2 penalty 0.1, to convergence" in proved
    assert "mean loss changed by" in proved
    assert "to first order" in predicted
    assert "of the curvature kept in every direction" in predicted
    assert "(a random set " in predicted
    assert " to first order and " in predicted
    assert rest.startswith("not predicted: how a network does whose other layers are trained too")
    text = InfluencePruner(few_digits, **options).select(model).certificate
    assert "proved: nothing: give the curvature the L2 penalty" in text


def test_loss_units_do_not_depend_on_how_parameters_are_scaled(few_digits):
    """Inputs doubled and weights halved: another distance, the same loss."""
    x, y = few_digits.tensors
    found = {}
    for scale in (1.0, 2.0):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 10, bias=False)).double()
        model[0].weight.data /= scale
        for metric in (parameter_distance, loss_distance):
            pruner = InfluencePruner(
                TensorDataset(x.double() * scale, y), budget=Budget(count=60), objective=KeepHead(metric),
                curvature=ExactCurvature(damping=1e-3 * scale**2), progress=False, solver=_random,
            )  # fmt: skip
            selection = pruner.select(model)
            found[scale, metric] = selection.shift, selection.newton_shift
    assert found[1.0, loss_distance] == pytest.approx(found[2.0, loss_distance], rel=1e-6)
    assert found[1.0, parameter_distance][0] == pytest.approx(
        2 * found[2.0, parameter_distance][0], rel=1e-6
    )


def test_half_the_squared_loss_distance_is_the_rise_of_a_quadratic_loss():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(80, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    full = ridge(x, y, 0.1)
    model[0].weight.data = full[None]
    selection = InfluencePruner(
        TensorDataset(x, y), budget=Budget(fraction=0.4), losses=SquaredError(), progress=False,
        curvature=ExactCurvature(damping=0.1), objective=KeepHead(loss_distance),
    ).select(model)  # fmt: skip
    kept = ridge(x[selection.kept], y[selection.kept], 0.1)

    def loss(w):
        return float((x @ w - y).square().mean() + 0.05 * w.square().sum())

    assert selection.newton_shift**2 / 2 == pytest.approx(loss(kept) - loss(full), rel=1e-4)


def _random(influence, budget, *, seed, **unused):
    size = budget.count_of(len(influence))
    order = torch.randperm(len(influence), generator=torch.Generator().manual_seed(seed))
    pruned = order[:size].sort().values
    return Solution(pruned, influence.shift_norm(pruned))


def test_no_bound_is_claimed_without_a_given_penalty(few_digits):
    model = nn.Sequential(nn.Linear(64, 10))
    for curvature in (ExactCurvature(), ExactCurvature(damping=0.0), IdentityCurvature()):
        pruner = InfluencePruner(
            few_digits, budget=Budget(count=20), curvature=curvature, progress=False
        )
        if curvature == ExactCurvature(damping=0.0):
            with pytest.raises(ValueError, match="not positive definite"):
                pruner.select(model)
        else:
            assert pruner.select(model).bound is None


def test_random_shift_is_the_mean_over_random_sets():
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    influence = Influence.from_vectors(vectors)
    # E ||sum||^2 of m of n centred vectors without replacement is m (n - m) / (n (n - 1)) sum ||v||^2
    total = float((vectors - vectors.mean(0)).square().sum())
    expected = 400 / 240 * (160 * 240 / (400 * 399) * total) ** 0.5
    assert random_shift(influence, 160, 0, draws=200) == pytest.approx(expected, rel=0.1)


CURVATURES = [ExactCurvature(damping=1e-3), KroneckerCurvature(damping=1e-3), IdentityCurvature()]


@pytest.mark.parametrize("metric", [parameter_distance, loss_distance])
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("n", [60, 1500])
def test_a_random_sets_newton_shift_is_that_of_its_own_curvature(n, curvature, metric):
    """With 76 parameters: fewer samples than that, and more."""
    samples = cross_entropy_samples(n, 5, 18)
    influence = Influence.build(samples.rows(), curvature.factorise(samples), metric=metric)
    for seed, size in ((0, n // 4), (1, n // 2), (2, 3 * n // 4)):
        pruned = torch.from_numpy(np.random.default_rng(seed).choice(n, size, replace=False))
        kept = curvature.factorise(samples[complement(pruned, n)], influence.factorised.damping)
        shift = newton_shift(kept, influence, pruned)
        expected = float((shift * metric(influence.factorised, shift)).sum().sqrt())
        found = random_newton_shift(curvature, samples, influence, size, seed)
        assert found == pytest.approx(expected, rel=5e-3)
    assert random_newton_shift(curvature, samples, influence, 0, 0) is None


def test_neither_set_costs_a_second_matrix(few_digits, monkeypatch):
    made, make = [], ExactCurvature.factorise
    monkeypatch.setattr(
        ExactCurvature, "factorise", lambda c, g, d=None: made.append(len(g)) or make(c, g, d)
    )
    selection = InfluencePruner(few_digits, budget=Budget(count=80), progress=False).select(
        nn.Sequential(nn.Linear(64, 10))
    )
    assert made == [200]
    assert selection.metadata["random_newton_shift"] > selection.newton_shift


def test_the_loss_bound_takes_the_inputs_a_chunk_at_a_time():
    inputs = torch.randn(2 * CHUNK + 3, 4, generator=torch.Generator().manual_seed(0))
    expected = 0.5 * float(inputs.double().norm(dim=1).mean())
    assert loss_bound(0.5, inputs, 1.0) == pytest.approx(expected)


def linear_head(data, steps=100):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data.tensors[0]), data.tensors[1]).backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("budget", [Budget(fraction=0.4), Budget(epsilon=50.0)])
def test_the_parts_of_the_time_add_up(few_digits, budget):
    """Solving again was counted twice with an epsilon."""
    model = linear_head(few_digits)
    pruner = InfluencePruner(
        few_digits, budget=budget, progress=False, solver=partial(anneal, moves=200_000)
    )
    started = time.perf_counter()
    facts = pruner.select(model).metadata
    seconds = time.perf_counter() - started
    parts = [facts[f"{p}_seconds"] for p in ("measuring", "curvature", "solving", "certificate")]
    assert min(parts) >= 0
    assert 0.7 * seconds <= sum(parts) <= seconds


def test_labels_below_zero_are_named(few_digits):
    class Source:
        def __call__(self, model, batch):
            found = HeadGradients("0")(model, batch)
            return replace(found, labels=torch.where(found.labels == 3, -1, found.labels))

    pruner = InfluencePruner(
        few_digits, budget=Budget(count=20), gradients=Source(), progress=False
    )
    for call in (pruner.check, pruner.select):
        with pytest.raises(ValueError, match="got -1 for sample .* below 0 in all"):
            call(nn.Sequential(nn.Linear(64, 10)))


def test_redrawing_with_the_last_of_all_seeds(few_digits):
    pruner = InfluencePruner(
        few_digits, budget=Budget(count=20), progress=False, seed=2**64 - 1,
        solver=partial(anneal, moves=1000),
    )  # fmt: skip
    scores = pruner.measure(nn.Sequential(nn.Linear(64, 10)))
    assert len(pruner.redraw(scores, torch.ones(200, dtype=torch.int64)).pruned) == 20


def test_the_scored_layer_is_kept(few_digits):
    scores = InfluencePruner(few_digits, budget=Budget(count=20), progress=False).measure(
        nn.Sequential(nn.Linear(64, 10))
    )
    named = replace(scores, layer="fc")
    state = named.state_dict()
    assert read_name(state, "layer") == "fc"
    assert read_name({k: v for k, v in state.items() if k != "layer"}, "layer") is None
    with pytest.raises(ValueError, match="must be a text, got 3"):
        read_name({**state, "layer": 3}, "layer")
    gradients = read_measurements(state, 200)
    selector = Selector(
        200, Budget(count=20), KeepHead(), ExactCurvature(), partial(anneal, moves=1000), None, None,
        True, 0, None,
    )  # fmt: skip
    again = selector.scores(gradients, None, 0.0, read_name(state, "layer"))
    assert again.layer == selector.select(again, None).metadata["layer"] == "fc"
    assert "layer 'fc'" in selector.select(again, None).verdict
