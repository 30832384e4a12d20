from functools import partial

import numpy as np
import pytest
from torch import nn

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, anneal


@pytest.fixture
def pruner(few_digits):
    return InfluencePruner(
        few_digits,
        budget=Budget(fraction=0.4),
        progress=False,
        solver=partial(anneal, moves=20_000),
    )


def test_one_pass_serves_every_fraction(pruner, few_digits):
    passes = []
    model = nn.Sequential(nn.Linear(64, 10))
    model.register_forward_hook(lambda *a: passes.append(len(a[1][0])))
    frontier = pruner.frontier(model, [0.5, 0.1, 0.3])
    assert sum(passes) < 2 * 200
    assert [len(s.pruned) for s in frontier.selections] == [20, 60, 100]
    assert frontier.array.shape == (3, 5)
    np.testing.assert_allclose(frontier.array[:, 0], [0.1, 0.3, 0.5])
    assert (frontier.array[:, 1] < frontier.array[:, 3]).all()
    assert len(str(frontier).splitlines()) == 5
    assert "| 30.0% |" in str(frontier)
    sampler = InfluencePrunedSampler(few_digits)
    sampler.restrict(frontier.selections[1])
    assert len(sampler) == 140
    alone = pruner.select(model)
    single = pruner.frontier(model, [0.4]).selections[0]
    assert single.pruned.tolist() == alone.pruned.tolist()
    assert single.shift == alone.shift


@pytest.mark.parametrize("fractions", [[], [0.2, 1.2], [0.0]])
def test_bad_fractions(pruner, fractions):
    with pytest.raises(ValueError, match="fraction"):
        pruner.frontier(nn.Sequential(nn.Linear(64, 10)), fractions)
