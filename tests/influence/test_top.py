"""Layers with many outputs: what is kept stands for the whole to a thousandth."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    AutoCurvature,
    BlockCurvature,
    Budget,
    CrossEntropy,
    Influence,
    InfluencePruner,
    KroneckerCurvature,
    SquaredError,
    costs,
)
from prunesampler.influence import top_kernels
from prunesampler.influence.hessians import from_helmert, helmert, to_helmert
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.top import KEPT, TopMeasurements, kept_outputs

CLASSES, FEATURES, SAMPLES = 300, 24, 1500


def data(samples=SAMPLES, classes=CLASSES, sure=12.0):
    """Features, labels, and a layer that is as sure of the labels as a trained one."""
    draw = torch.Generator().manual_seed(0)
    centres = nn.functional.normalize(torch.randn(classes, FEATURES, generator=draw), dim=1)
    labels = torch.randint(0, classes, (samples,), generator=draw)
    inputs = centres[labels] + 0.15 * torch.randn(samples, FEATURES, generator=draw)
    head = nn.Linear(FEATURES, classes)
    with torch.no_grad():
        head.weight.copy_(2 * sure * centres)
        head.bias.zero_()
    return inputs, labels, head


def measured(losses=None, soft=False, **options):
    inputs, labels, head = data(**options)
    targets = nn.functional.one_hot(labels, len(head.weight)).float()
    targets = 0.7 * targets + 0.3 * targets.roll(1, 1) if soft else labels
    with torch.no_grad():
        found = (losses or CrossEntropy()).derivatives(head(inputs), targets)
    values, delta, hessian = found
    ones = torch.cat([inputs, torch.ones(len(inputs), 1)], 1)
    return Measurements(delta, ones, hessian, values, labels)


def near(found, expected, tolerance):
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("size", [2, 3, 17])
def test_running_sums_are_products_with_the_basis(size):
    matrix = torch.randn(2, size, 5, dtype=torch.float64)
    reduced = to_helmert(matrix)
    torch.testing.assert_close(reduced, helmert(size).T @ matrix)
    torch.testing.assert_close(from_helmert(reduced), helmert(size) @ reduced)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("losses", "soft"),
    [
        (CrossEntropy(), False),
        (CrossEntropy(), True),
        (CrossEntropy(weight=torch.linspace(0.5, 2, CLASSES)), False),
    ],
)
def test_what_is_kept_stands_for_the_whole(losses, soft, threads, monkeypatch):
    whole = measured(losses, soft)
    monkeypatch.setattr(top_kernels, "FLUSH", 400)  # so that few samples take several threads
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    kept = TopMeasurements.of(whole)
    matrix = torch.randn(2, *whole.shape, dtype=torch.float64)
    near(kept.curvature_product(matrix), whole.curvature_product(matrix), 2e-2)
    near(kept.curvature_product(matrix[1]), kept.curvature_product(matrix)[1], 1e-12)
    some = torch.arange(0, SAMPLES, 3)
    near(kept.rows().sum(some), whole.rows().sum(some), 5e-3)
    near(kept.rows().sum(), whole.rows().sum(), 1e-2)
    weights = torch.rand(SAMPLES)
    near(kept.rows().weighted_sum(weights), whole.rows().weighted_sum(weights), 5e-3)
    near(kept.rows().inner(matrix[0]), whole.rows().inner(matrix[0]), 5e-3)
    near(kept.rows().norms(), whole.rows().norms(), 5e-3)
    near(kept.rows()[some].sum(), kept.rows().sum(some), 1e-6)
    assert kept.mean_eigenvalue() == pytest.approx(whole.mean_eigenvalue(), rel=2e-2)
    assert float(kept.delta.sum(1).abs().max()) < 1e-5
    near(
        kept.subset(some).curvature_product(matrix[0]),
        kept[some].curvature_product(matrix[0]),
        1e-6,
    )


def test_shifts_are_those_of_the_whole_to_a_thousandth():
    whole = measured()
    kept = TopMeasurements.of(whole)
    pruned = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(1))[:500].sort().values
    norms = []
    for each in (whole, kept):
        factorised = BlockCurvature(damping=1e-3).factorise(each)
        norms.append(Influence.build(each.rows(), factorised).shift_norm(pruned))
    assert norms[1] == pytest.approx(norms[0], rel=3e-3)


def test_only_wide_softmax_layers_are_thinned():
    narrow = measured(classes=200)
    assert kept_outputs(narrow) is narrow
    losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 300), torch.ones(2, 300))
    squared = Measurements(delta, torch.ones(2, 3), hessian, losses)
    assert kept_outputs(squared) is squared
    wide = kept_outputs(measured())
    assert wide.delta.shape == (SAMPLES, KEPT)
    assert wide.inputs.dtype == torch.float16
    small = measured()[:5]
    few = Measurements(small.delta, small.inputs[:, :20], small.hessian, small.losses)
    assert AutoCurvature().keep(few) is few  # 299 * 20 parameters: one matrix will do


def test_inputs_beyond_half_precision_are_refused():
    large = measured()
    large.inputs[3, 2] = 1e5
    with pytest.raises(
        ValueError, match="is 1e\\+05, but .* half precision, .* normalise the features"
    ):
        kept_outputs(large)


@pytest.fixture(scope="module")
def pruner():
    inputs, labels, _ = data()
    wider = torch.cat([inputs, inputs.square()], 1)
    return InfluencePruner(
        TensorDataset(wider, labels), budget=Budget(fraction=0.3), progress=False
    )


@pytest.fixture(scope="module")
def model():
    inputs, _, head = data()
    model = nn.Linear(2 * inputs.shape[1], CLASSES)
    with torch.no_grad():
        model.weight.zero_()[:, : inputs.shape[1]] = head.weight
        model.bias.zero_()
    return model


@pytest.mark.filterwarnings("ignore:.*no better chosen than at random:UserWarning")
def test_the_default_selects_and_its_scores_can_be_kept(pruner, model):
    selection = pruner.select(model)
    assert len(selection.pruned) == round(0.3 * SAMPLES)
    assert selection.metadata["curvature"] == "BlockCurvature"
    assert selection.metadata["residual"] <= 1e-3
    scores = pruner.measure(model)
    assert isinstance(scores.measurements, TopMeasurements)
    again = pruner.scores_from(scores.state_dict())
    ages = torch.zeros(SAMPLES, dtype=torch.int64)
    assert torch.equal(pruner.redraw(again, ages).pruned, selection.pruned)
    weights = pruner.weights(scores, selection)
    assert weights.shape == selection.kept.shape
    assert weights.mean() == pytest.approx(1.0)
    plain = InfluencePruner(
        pruner.dataset, budget=Budget(fraction=0.3), progress=False, curvature=KroneckerCurvature()
    ).measure(model)
    for price in (costs.el2n, costs.grand, costs.margin):
        near(price(scores), price(plain), 1e-2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"outputs": 299}, "keep outputs beyond the layer's 299"),
        ({"outputs": None}, "outputs must be a whole number"),
        ({"kept": torch.zeros(SAMPLES, KEPT).int() - 1}, "keep outputs beyond"),
        ({"kept": torch.zeros(SAMPLES, KEPT)}, "kept outputs do not fit together"),
        ({"kept": torch.zeros(SAMPLES, 3).int()}, "kept outputs do not fit together"),
    ],
)
def test_damaged_scores_are_refused(pruner, model, change, said):
    state = pruner.measure(model).state_dict()
    held = {**state["hessian_tensors"]}
    if "kept" in change:
        held["outputs"] = change.pop("kept")
    with pytest.raises(ValueError, match=said):
        pruner.scores_from({**state, "hessian_tensors": held, **change})


def test_a_model_or_targets_that_spread_widely_are_refused(model):
    inputs, labels, _ = data()
    wider = torch.cat([inputs, inputs.square()], 1)
    dataset = TensorDataset(wider, labels)
    pruner = InfluencePruner(dataset, budget=Budget(fraction=0.3), progress=False)
    with pytest.raises(ValueError, match="64 most probable are kept .* lies elsewhere"):
        pruner.measure(nn.Linear(2 * FEATURES, CLASSES))
    pruner.check(nn.Linear(2 * FEATURES, CLASSES))  # it may be surer when samples are to be chosen
    soft = torch.full((len(labels), CLASSES), 1 / CLASSES)
    losses = CrossEntropy(run=lambda model, batch: (model(batch[0]), soft[: len(batch[0])]))
    sure = InfluencePruner(dataset, budget=Budget(fraction=0.3), progress=False, losses=losses)
    with pytest.raises(ValueError, match="% of the probability or of the targets lies elsewhere"):
        sure.measure(model)


@pytest.mark.filterwarnings("ignore:.*no better chosen than at random:UserWarning")
def test_nothing_is_proved_over_kept_outputs(pruner, model):
    damped = InfluencePruner(
        pruner.dataset, budget=pruner.budget, progress=False, curvature=AutoCurvature(damping=1e-2)
    )
    assert damped.select(model).bound is None
