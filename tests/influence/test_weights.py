from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import cross_entropy_samples
from scipy.optimize import nnls
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    Budget,
    ExactCurvature,
    IdentityCurvature,
    Influence,
    InfluencePrunedSampler,
    InfluencePruner,
    KroneckerCurvature,
    Selection,
)
from prunesampler.influence.automatic import BlockCurvature
from prunesampler.influence.weights import SPREAD, kept_weights, pull_of, ridge_weights

pytestmark = pytest.mark.filterwarnings("ignore:.*no better chosen than at random")
PENALTY = 0.01


def spread_of(weights):
    return float((weights.double() - 1).square().mean().sqrt())


def dense_half(influence, kept):
    """A matrix B of shape (R, k) with ``B^T B = Q``, all written out."""
    rows = influence.gradients.flat().double()
    centred = (rows - rows.mean(0))[kept]
    eye = torch.eye(centred.shape[1], dtype=torch.float64)
    inverse = influence.factorised.apply_inverse(eye.view(-1, *influence.gradients.shape))
    values, vectors = torch.linalg.eigh(inverse.reshape(eye.shape))
    return (vectors * values.clamp(min=0).sqrt()).T @ centred.T / len(kept) ** 0.5


def by_scipy(half, ridge):
    """Lawson and Hanson's non-negative least squares on the stacked system."""
    k = half.shape[1]
    stacked = np.vstack([half.numpy(), ridge**0.5 * np.eye(k)])
    target = np.concatenate([np.zeros(len(half)), np.full(k, ridge**0.5)])
    return torch.from_numpy(nnls(stacked, target)[0])


def influence_of(curvature, n=200):
    samples = cross_entropy_samples(n, 4, 6)
    return Influence.build(samples.rows(), curvature.factorise(samples))


@pytest.mark.parametrize("ridge", [10.0, 0.1, 1e-3])
@pytest.mark.parametrize("count", [15, 40, 120])
def test_ridge_weights_are_those_of_non_negative_least_squares(count, ridge):
    influence = influence_of(ExactCurvature(damping=1e-2))
    kept = torch.arange(count)
    found = ridge_weights(
        pull_of(influence, kept), ridge, torch.ones(count, dtype=torch.float64), 1e-9
    )
    expected = by_scipy(dense_half(influence, kept), ridge)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert bool((expected == 0).any()) == (count < 120 and ridge < 1)


@pytest.mark.parametrize("count", [15, 60])
@pytest.mark.parametrize("spread", [0.1, 0.5])
def test_no_weights_of_this_spread_shift_less(count, spread):
    influence = influence_of(ExactCurvature(damping=1e-2))
    kept = torch.arange(count)
    half = dense_half(influence, kept)
    found = kept_weights(influence, kept, spread).double()

    ridges = np.logspace(2, -4, 600)
    scaled = [weights / weights.mean() for weights in (by_scipy(half, ridge) for ridge in ridges)]
    within = [weights for weights in scaled if spread_of(weights) <= spread]
    best = min(float((half @ weights).norm()) for weights in within)
    assert float((half @ found).norm()) <= 1.01 * best
    assert best < 0.95 * float(half.sum(1).norm())


@pytest.mark.parametrize(
    "curvature",
    [
        ExactCurvature(damping=1e-2),
        KroneckerCurvature(damping=1e-2),
        BlockCurvature(damping=1e-2),
        IdentityCurvature(),
    ],
)
def test_any_curvature_takes_away_shift(curvature):
    influence = influence_of(curvature)
    truth = influence_of(ExactCurvature(damping=1e-2)).factorised
    kept = torch.arange(50)
    weights = kept_weights(influence, kept)
    rows, mean = influence.gradients[kept], influence.mean
    equal = rows.sum() - 50 * mean
    weighted = torch.einsum("n,nk,nd->kd", weights, rows.left, rows.right) - 50 * mean
    norms = [float(truth.apply_inverse(total).norm()) for total in (weighted, equal)]
    assert norms[0] < 0.5 * norms[1]


vectors = st.lists(
    st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=2), min_size=2, max_size=12
)


@settings(max_examples=300)
@given(vectors, st.integers(1, 12), st.floats(0.01, 5))
def test_weights_are_a_mean_of_one_and_none_is_negative(values, count, spread):
    influence = Influence.from_vectors(torch.tensor(values))
    kept = torch.arange(min(count, len(values)))
    weights = kept_weights(influence, kept, spread)
    assert weights.dtype == torch.float32
    assert weights.shape == kept.shape
    assert bool((weights >= 0).all())
    assert float(weights.double().mean()) == pytest.approx(1, abs=1e-5)
    assert spread_of(weights) <= spread * 1.001 + 1e-6
    before, after = (
        float((influence.gradients[kept].inner(eye) * w).sum())
        for w in (torch.ones(len(kept)).double(), weights.double())
        for eye in [influence.gradient_sum(kept)]
    )
    assert after <= before + 1e-5 * (1 + abs(before))


@pytest.mark.parametrize("spread", [0.05, 0.2, 0.5])
def test_the_spread_is_as_asked(spread):
    influence = influence_of(ExactCurvature(damping=1e-2))
    weights = kept_weights(influence, torch.arange(30), spread)
    assert spread_of(weights) == pytest.approx(spread, rel=1e-4)


def test_the_spread_stays_below_where_less_is_enough():
    influence = Influence.from_vectors(torch.tensor([[1.0], [2.0], [-1.0], [-2.0]]))
    weights = kept_weights(influence, torch.tensor([0, 3]), spread=5.0)
    assert weights.tolist() == pytest.approx([4 / 3, 2 / 3], abs=1e-3)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        (torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), range(20)),
        (torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), [7]),
        (torch.tensor([[1.0, 2.0]] * 5 + [[-3.0, 0.5]] * 5), range(5)),
        (torch.tensor([[1.0, 2.0]] * 10), range(4)),
        (torch.zeros(10, 3), range(4)),
    ],
    ids=["all kept", "one kept", "the same sample", "all the same", "no gradients"],
)
def test_weights_are_one_where_none_can_be_better(rows, kept):
    weights = kept_weights(Influence.from_vectors(rows), torch.tensor(list(kept)))
    torch.testing.assert_close(weights, torch.ones(len(weights)))


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_scale_of_gradients_does_not_matter(scale):
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
    kept = torch.arange(9)
    expected = kept_weights(Influence.from_vectors(rows), kept)
    torch.testing.assert_close(kept_weights(Influence.from_vectors(rows * scale), kept), expected)


@pytest.mark.parametrize("spread", [0, -0.1, float("nan"), float("inf")])
def test_a_spread_that_is_none(spread):
    influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0]]))
    with pytest.raises(ValueError, match="spread must be a positive number, got"):
        kept_weights(influence, torch.tensor([0]), spread)


class Head:
    """A logistic head on principal components of the digits, trained by scikit-learn."""

    def __init__(self, components):
        x, y = load_digits(return_X_y=True)
        low = PCA(components, random_state=0).fit_transform(x / 16)
        self.x, self.y = np.hstack([low, np.ones((len(x), 1))]), y
        self.full = self.fit(np.arange(len(y)))

    def fit(self, kept, weights=None):
        fit = LogisticRegression(
            C=1 / (PENALTY * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
        )
        return fit.fit(self.x[kept], self.y[kept], sample_weight=weights).coef_

    def distance(self, kept, weights=None):
        return float(np.linalg.norm(self.fit(kept, weights) - self.full))

    def pruner(self, count):
        data = TensorDataset(torch.from_numpy(self.x), torch.from_numpy(self.y))
        return InfluencePruner(
            data,
            budget=Budget(count=len(self.y) - count),
            curvature=ExactCurvature(damping=PENALTY),
            progress=False,
        )

    def model(self):
        layer = nn.Linear(self.x.shape[1], 10, bias=False).double()
        layer.weight.data = torch.from_numpy(self.full)
        return nn.Sequential(layer)


def test_a_weighted_head_is_nearer_to_the_full_one_than_without_weights_and_than_at_random():
    head = Head(16)
    pruner = head.pruner(180)
    scores = pruner.measure(head.model())
    selection = pruner.select(head.model())
    chosen = selection.kept.numpy()
    random = np.sort(np.random.default_rng(0).permutation(len(head.y))[:180])
    weighted = {}
    for name, kept in (("chosen", chosen), ("random", random)):
        weights = kept_weights(scores.influence, torch.from_numpy(kept)).double().numpy()
        weighted[name] = head.distance(kept, weights)
        assert weighted[name] < 0.75 * head.distance(kept)
    assert weighted["chosen"] < 0.1 * weighted["random"]


def test_a_few_more_samples_than_parameters_give_the_full_head():
    head = Head(8)  # R = 9 * 9
    pruner = head.pruner(140)
    scores = pruner.measure(head.model())
    selection = pruner.select(head.model())
    weights = pruner.weights(scores, selection)
    kept = selection.kept.numpy()
    assert spread_of(weights) < SPREAD
    assert head.distance(kept, weights.double().numpy()) < 0.02 * head.distance(kept)


def test_weights_travel_with_a_selection_and_samplers_say_that_they_leave_them(few_digits):
    pruner = InfluencePruner(few_digits, budget=Budget(count=150), progress=False)
    model = nn.Sequential(nn.Linear(64, 10))
    selection, scores = pruner.select(model), pruner.measure(model)
    weights = pruner.weights(scores, selection, spread=0.3)
    assert torch.equal(weights, kept_weights(scores.influence, selection.kept, 0.3))
    weighted = Selection.from_bytes(replace(selection, weights=weights).to_bytes())
    assert torch.equal(weighted.weights, weights)
    sampler = InfluencePrunedSampler(few_digits)
    sampler.restrict(selection)
    with pytest.warns(UserWarning, match="leaves the weights of the selection unused"):
        sampler.restrict(weighted)
    assert torch.equal(sampler.kept, selection.kept)


def test_a_selection_of_another_dataset_is_refused(few_digits):
    pruner = InfluencePruner(few_digits, budget=Budget(count=150), progress=False)
    scores = pruner.measure(nn.Sequential(nn.Linear(64, 10)))
    other = Selection(torch.tensor([0]), 20, 0.1, 0.1, None, Budget(count=1))
    with pytest.raises(ValueError, match="of 20 samples, the scores are of 200; weigh with"):
        pruner.weights(scores, other)
