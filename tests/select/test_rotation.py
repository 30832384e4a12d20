from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    Budget,
    Constraints,
    ExactCurvature,
    InfluencePruner,
    anneal,
)
from prunesampler.select.rotation import older


def setting(n=2000, budget=None, moves=300_000, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator)
    weights = torch.randn(6, 3, generator=generator)
    y = (x @ weights + torch.randn(n, 3, generator=generator)).argmax(1)
    model = nn.Sequential(nn.Linear(6, 3))
    model[0].weight.data = 0.5 * weights.T
    pruner = InfluencePruner(
        TensorDataset(x, y), budget=budget or Budget(fraction=0.4), progress=False,
        curvature=ExactCurvature(damping=0.01), solver=partial(anneal, moves=moves), **options,
    )  # fmt: skip
    return pruner, pruner.measure(model), y


def draws(pruner, scores, count, n):
    ages, found = torch.zeros(n, dtype=torch.int64), []
    for _ in range(count):
        found.append(pruner.redraw(scores, ages))
        ages = older(ages, found[-1].pruned)
    return found


def kept_counts(found, n):
    return sum((torch.bincount(s.kept, minlength=n) for s in found), torch.zeros(n))


def test_twenty_draws_at_forty_percent():
    pruner, scores, _ = setting(6000)
    found = draws(pruner, scores, 20, 6000)
    counts = kept_counts(found, 6000)
    assert counts.min() >= 10
    assert counts.max() <= 14
    for selection in found:
        assert len(selection.pruned) == 2400
        assert selection.shift <= 0.01 * selection.metadata["random_shift"]
        assert selection.shift == scores.influence.shift_norm(selection.pruned)
    for k in range(18):
        union = torch.cat([s.kept for s in found[k : k + 3]]).unique()
        assert len(union) == 6000
    assert len({s.pruned.numpy().tobytes() for s in found}) > 10


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5, 0.7, 0.9])
def test_everybody_comes_back_in_time(fraction):
    pruner, scores, _ = setting(500, Budget(fraction=fraction), moves=3000)
    limit = -(-1 // (1 - fraction)) + 1
    found = draws(pruner, scores, 24, 500)
    last = torch.zeros(500)
    for number, selection in enumerate(found, 1):
        gap = number - last[selection.kept]
        assert gap.max() <= limit
        last[selection.kept] = number
    assert (len(found) - last).max() < limit


def test_quotas_floors_and_constraints_hold_in_every_draw():
    constraints = Constraints(keep=range(20), prune=range(30, 35))
    pruner, scores, y = setting(
        500, Budget(fraction=0.4, proportional=True), moves=3000, constraints=constraints
    )
    shares = y.bincount() * 0.6
    for selection in draws(pruner, scores, 8, 500):
        kept = set(selection.kept.tolist())
        assert set(range(20)) <= kept
        assert not kept & set(range(30, 35))
        assert (y[selection.kept].bincount() >= shares.floor()).all()
        assert len(selection.pruned) == 200


def test_every_draw_stays_within_epsilon():
    pruner, scores, _ = setting(500, Budget(epsilon=0.02, max_fraction=0.4), moves=20_000)
    found = draws(pruner, scores, 6, 500)
    for selection in found:
        assert 0 < len(selection.pruned) <= 200
        assert selection.shift <= 0.02
    assert kept_counts(found, 500).min() >= 1


def test_ages_count_draws_in_a_row():
    ages = torch.zeros(3, dtype=torch.int64)
    for pruned in ([0], [0, 1], [1]):
        ages = older(ages, torch.tensor(pruned))
    assert ages.tolist() == [-1, 2, -3]


@pytest.mark.parametrize("fraction", [0.2, 0.4, 0.5, 0.8])
@pytest.mark.parametrize("proportional", [False, True])
def test_a_redraw_never_fails_where_a_selection_succeeds(fraction, proportional):
    pruner, scores, _ = setting(
        500, Budget(fraction=fraction, proportional=proportional), moves=500,
        constraints=Constraints(keep=range(40), prune=range(60, 90)),
    )  # fmt: skip
    for selection in draws(pruner, scores, 12, 500):
        assert len(selection.pruned) == 500 * fraction


def test_with_epsilon_everybody_comes_back_in_time():
    pruner, scores, _ = setting(500, Budget(epsilon=0.5, max_fraction=0.8), moves=3000)
    found = draws(pruner, scores, 14, 500)
    assert kept_counts(found, 500).min() >= 2
    last = torch.zeros(500)
    for number, selection in enumerate(found, 1):
        assert (number - last[selection.kept]).max() <= 6
        last[selection.kept] = number
