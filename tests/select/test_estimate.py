"""What a selection is told to take beforehand."""

import logging

import pytest
import torch
from samples import cross_entropy_samples
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    AutoCurvature,
    BlockCurvature,
    Budget,
    Curvature,
    ExactCurvature,
    InfluencePruner,
    KroneckerCurvature,
)
from prunesampler.influence.factorised import IdentityFactorised
from prunesampler.influence.influence import Influence
from prunesampler.select import estimate as estimates
from prunesampler.select.estimate import VECTORS, bytes_per_sample, estimate


def bytes_of(*tensors):
    return sum(tensor.nbytes for tensor in tensors)


def test_the_bytes_are_those_of_the_tensors():
    measured = cross_entropy_samples(400, 7, 12)
    assert bytes_per_sample(measured[:30]) * 400 == bytes_of(*measured.tensors().values())
    exact = ExactCurvature(damping=1e-2)
    rows = exact.factorise(measured).whiten(measured.rows())
    found = estimate(measured[:30], 400, exact, 1.0, 1)
    assert found.bytes_measured == bytes_of(*measured.tensors().values())
    assert found.bytes_work == bytes_of(rows.right, measured.rows().left) + 32 * 78**2
    blocks = BlockCurvature(damping=1e-2)
    factorised = blocks.factorise(measured)
    sparse = Influence.build(measured.rows(), factorised).whitened
    held = bytes_of(sparse.projected, sparse.values, sparse.outputs, sparse.places, sparse.inputs)
    held += bytes_of(factorised.near.vectors, measured.rows().left)
    held += VECTORS * measured.rows().sum().nbytes  # of the inverse
    assert estimate(measured, 400, blocks, 1.0, 1).bytes_work == pytest.approx(held, rel=0.2)


@pytest.mark.parametrize("curvature", [ExactCurvature(), KroneckerCurvature(), BlockCurvature()])
def test_estimates_grow_with_the_samples(curvature):
    batch = cross_entropy_samples(64, 12, 30)
    small, large = (estimate(batch, n, curvature, 0.5, 2) for n in (10**5, 10**6))
    assert small.bytes_measured * 10 == large.bytes_measured
    assert large.bytes_part * 2 == pytest.approx(large.bytes_measured, abs=2)
    assert small.seconds["measuring"] * 10 == pytest.approx(large.seconds["measuring"])
    assert small.seconds["measuring"] == pytest.approx(0.5 * 10**5 / 64 / 2)
    assert 2 < large.bytes_work / small.bytes_work < 11
    assert large.seconds["solving"] > 2 * small.seconds["solving"]
    assert all(0 < took < 1e5 for took in large.seconds.values())
    assert large.notable
    assert f"{10**6 / (11 * 31):.3g} samples for each of the 341" in str(large)


class OwnCurvature(Curvature):
    def factorise(self, measurements, damping=None):
        return IdentityFactorised()


def test_of_a_curvature_of_ones_own_only_the_measurements_are_known():
    found = estimate(cross_entropy_samples(8, 3, 2), 100, OwnCurvature(), 0.0, 1)
    assert found.curvature == "OwnCurvature"
    assert str(found).startswith("a selection takes about 0 s () and ")
    assert "others" not in str(found)


def test_the_pruner_estimates_from_a_batch(few_digits):
    pruner = InfluencePruner(few_digits, budget=Budget(count=80), progress=False)
    found = pruner.estimate(nn.Linear(64, 10))
    assert (found.num_samples, found.parameters) == (200, 585)
    assert found.curvature == "ExactCurvature"
    assert found.samples_per_parameter == pytest.approx(200 / 585)
    assert "which is few: expect a good part of a random set's shift" in str(found)
    assert not found.notable


@pytest.mark.filterwarnings("ignore:.*no better chosen than at random:UserWarning")
def test_what_takes_long_is_announced_once(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "prunesampler")
    dataset = TensorDataset(torch.randn(300, 200), torch.arange(300) % 60)
    monkeypatch.setattr(estimates, "LONG", 0.0)
    pruner = InfluencePruner(
        dataset, budget=Budget(count=80), progress=False, curvature=AutoCurvature(damping=1e-3)
    )
    model = nn.Linear(200, 60)
    pruner.check(model)
    pruner.select(model)
    told = [record.message for record in caplog.records if "beside the pass" in record.message]
    assert len(told) == 1
    assert "with BlockCurvature; there are 0.0253 samples for each of the 11859" in told[0]
