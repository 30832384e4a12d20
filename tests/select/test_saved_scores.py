"""Files of scores: what comes back, and what becomes of damage by accident and on purpose."""

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    AutoCurvature,
    BinaryCrossEntropy,
    BlockCurvature,
    Budget,
    ExactCurvature,
    IdentityCurvature,
    InfluencePruner,
    KroneckerCurvature,
    Scores,
    Target,
    TokenCrossEntropy,
)
from prunesampler.base.files import pack_state, unpack_state


def scored(outputs=3, **options):
    """A pruner, and scores of sixty samples."""
    torch.manual_seed(0)
    data = TensorDataset(3 * torch.randn(60, 5), torch.arange(60) % 3)
    options = {"objective": Target(data), "budget": Budget(fraction=0.3), **options}
    pruner = InfluencePruner(data, progress=False, **options)
    model = nn.Sequential(nn.Linear(5, outputs))
    with torch.no_grad():
        model[0].bias[3:] -= 20
    return pruner, pruner.measure(model)


@pytest.mark.parametrize(
    "curvature",
    [
        AutoCurvature(), AutoCurvature(damping=0.3), BlockCurvature(damping=0.2), KroneckerCurvature(damping=0.1),
        IdentityCurvature(), ExactCurvature(damping=0.4, max_size=100),
    ],
)  # fmt: skip
def test_the_curvature_comes_back_as_it_was_given(tmp_path, curvature):
    _, scores = scored(curvature=curvature)
    scores.save(tmp_path / "scores")
    again = Scores.load(tmp_path / "scores")
    assert again.curvature == curvature
    assert again.centred is True
    assert again.influence.factorised.damping == scores.influence.factorised.damping


def test_a_curvature_of_one_s_own_is_given_again(tmp_path):
    class Mine(ExactCurvature):
        """A curvature that this package does not know."""

    _, scores = scored(curvature=Mine(damping=0.1))
    scores.save(tmp_path / "scores")
    with pytest.raises(ValueError, match="a curvature of your own, 'Mine'; give curvature="):
        Scores.load(tmp_path / "scores")
    assert (
        Scores.load(tmp_path / "scores", curvature=Mine(damping=0.1)).curvature == scores.curvature
    )


def test_files_that_are_not_scores_are_refused(tmp_path):
    path, (_, scores) = tmp_path / "scores", scored()
    scores.save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(ValueError, match="not a whole file"):
        Scores.load(path)
    path.write_bytes(json.dumps({"scores": 3}).encode())
    with pytest.raises(ValueError, match="not a file"):
        Scores.load(path)
    path.write_bytes(pack_state({"other": 1}))
    with pytest.raises(ValueError, match="holds no scores"):
        Scores.load(path)


SEQUENCES = InfluencePruner(
    TensorDataset(torch.randn(20, 4, 5), torch.randint(0, 3, (20, 4))),
    losses=TokenCrossEntropy(), budget=Budget(count=5), progress=False,
).measure(nn.Sequential(nn.Linear(5, 3)))  # fmt: skip
BINARY = InfluencePruner(
    TensorDataset(torch.randn(60, 5), torch.rand(60, 3).round()),
    losses=BinaryCrossEntropy(), budget=Budget(count=5), progress=False,
).measure(nn.Sequential(nn.Linear(5, 3)))  # fmt: skip
KINDS = {"softmax": scored()[1], "top": scored(300)[1], "sequences": SEQUENCES, "binary": BINARY}
ODD = [
    None, 0, -1, 3, 10**9, 10**30, math.nan, math.inf, "", "text", True, [], [1, 2], torch.zeros(0), torch.zeros(60),
    torch.ones(60, 3), torch.ones(60, 3, 3), torch.full((60,), -1.0), torch.full((60, 3), math.nan),
    torch.full((60, 3), 1e38), torch.zeros(60, dtype=torch.int64), torch.full((60,), 7), torch.ones(60, 64).int(),
    torch.zeros(60, 3).half(), torch.zeros(60, 6).bool(), torch.zeros(60, 6, dtype=torch.complex64),
]  # fmt: skip


def paths(state, above=()):
    """Where the values of nested dicts are."""
    for key, value in state.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


def changed(state, path, change):
    """A nested dict with another value at a path, or without it."""
    key, *rest = path
    if rest:
        return {**state, key: changed(state[key], rest, change)}
    new = change(state[key])
    return {k: v for k, v in state.items() if k != key} | ({} if new is ... else {key: new})


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(KINDS)), st.data())
def test_damage_is_a_value_error_or_does_no_harm(tmp_path_factory, kind, data):
    """Whatever a file holds: a ValueError, or scores from which everything can be asked."""
    path = tmp_path_factory.mktemp("scores") / "scores"
    KINDS[kind].save(path)
    state = unpack_state(path.read_bytes())
    where = data.draw(st.sampled_from(sorted(paths(state))), label="path")
    changes = {
        "gone": lambda _: ...,
        "odd": lambda _: data.draw(st.sampled_from(ODD), label="value"),
        "shorter": lambda v: v[1:] if isinstance(v, torch.Tensor) and v.dim() else ...,
        "negative": lambda v: -v if isinstance(v, torch.Tensor) and v.dtype != torch.bool else -1,
        "whole": lambda v: v.long() if isinstance(v, torch.Tensor) else [3],
        "large": lambda v: (
            (v.double() * 1e30).to(v.dtype) if isinstance(v, torch.Tensor) else 10**18
        ),
        "flat": lambda v: v.flatten() if isinstance(v, torch.Tensor) else {},
    }
    change = changes[data.draw(st.sampled_from(sorted(changes)), label="change")]
    path.write_bytes(pack_state(changed(state, where, change)))
    try:
        found = Scores.load(path)
    except ValueError:
        return
    found.audit()
    if kind in ("softmax", "top"):
        found.leave_one_out()


@pytest.mark.filterwarnings("ignore:the .* pruned samples are no better")
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9), st.integers(0, 255))
def test_flipped_bytes_are_a_value_error_or_do_no_harm(tmp_path_factory, place, byte):
    path = tmp_path_factory.mktemp("scores") / "scores"
    KINDS["softmax"].save(path)
    data = bytearray(path.read_bytes())
    data[place % len(data)] = byte
    path.write_bytes(bytes(data))
    try:
        found = Scores.load(path)
        found.audit()
    except ValueError:
        pass
