from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from prunesampler import Budget, InfluencePrunedSampler, InfluencePruner, Selection, anneal
from prunesampler.select.frontier import Frontier
from prunesampler.solve.problem import Problem


def longest(influence, budget, **options):
    """A solver that prunes the samples which move the layer most, one by one."""
    squares = influence.sample_squares()
    return Problem.of(influence, budget).solution(
        squares.topk(budget.count_of(len(squares))).indices.sort().values
    )


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


def found(pruned, shift, newton, **facts):
    metadata = {"random_shift": 2.0, "random_newton_shift": 3.0, "cost": False, **facts}
    return Selection(
        torch.arange(pruned), 10, shift, newton, None, Budget(count=pruned), metadata=metadata
    )


def test_sets_that_are_no_better_than_random_ones_are_named():
    good, poor, worse = found(2, 0.2, 0.3), found(3, 0.2, 2.85), found(4, 3.0, 0.3)
    frontier = Frontier((good, poor, worse))
    *table, empty, said = str(frontier).splitlines()
    assert [row.split("|")[5].strip() for row in table[2:]] == ["10.00%", "95.00%", "150.00%"]
    assert empty == ""
    assert said == (
        "The sets are no better than a random one at 30.0% (95 % of its shift), 40.0% (150 % of its "
        "shift); the verdict of such a selection says why."
    )
    assert "The set is no better than a random one at 30.0% (" in str(Frontier((good, poor)))
    assert str(Frontier((good, found(3, 0.2, 2.85, cost=True)))).count("\n") == 3  # not its aim


def test_a_frontier_warns_once_where_sets_are_no_better_than_random_ones(few_digits):
    torch.manual_seed(0)
    pruner = InfluencePruner(few_digits, budget=Budget(count=5), progress=False, solver=longest)
    with pytest.warns(
        UserWarning, match=r"no better than a random one at 10.0% \(.*, 20.0%"
    ) as said:
        frontier = pruner.frontier(nn.Linear(64, 10), [0.1, 0.2])
    assert len(said) == 1
    assert said[0].filename == __file__
    assert not any(selection.beats_random for selection in frontier.selections)


@pytest.mark.parametrize("fractions", [[], [0.2, 1.2], [0.0]])
def test_bad_fractions(pruner, fractions):
    with pytest.raises(ValueError, match="fraction"):
        pruner.frontier(nn.Sequential(nn.Linear(64, 10)), fractions)
