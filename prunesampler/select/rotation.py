"""Redrawing: which samples must come back, and which may be left out again.

Every sample has an age: for how many draws in a row it has been left out or, as a negative number,
kept. The next set leaves out those with the lowest ages, so that samples left out longest come back
first and each is left out about equally often. Where samples of the same age compete, the solver is
free to choose: that is where the small shift comes from.

It is the limit of a linear cost on the ages whose weight outgrows everything else.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunesampler.solve.constraints import Constraints
from prunesampler.solve.problem import Problem


def older(ages: Tensor, pruned: Tensor) -> Tensor:
    """Ages after a draw, int64, shape (n,).

    Args:
        ages: before it, zeros at first.
        pruned: indices that the draw left out.
    """
    out = torch.zeros(len(ages), dtype=torch.bool)
    out[pruned] = True
    return torch.where(out, ages.clamp(min=0) + 1, ages.clamp(max=0) - 1)


def rotated(problem: Problem, ages: Tensor, constraints: Constraints | None) -> Constraints:
    """The constraints with those of the rotation: who must come back, who must go.

    Where a share k of the samples that are free to go is kept, each of them is kept again within
    ``ceil(1 / k) + 1`` draws; with groups of several sizes about so. With epsilon, k counts what the
    cap on the fraction keeps, and nobody must go, since that might break the guarantee.

    Args:
        problem: influence, limits and groups; not yet rotated.
        ages: of all samples, see :func:`older`.
        constraints: those of the problem.
    """
    first = problem.members[problem.start[:-1]]
    age = ages[first].numpy()
    pools = problem.pools()
    order = np.argsort(age, kind="stable")
    pruned, _ = problem.fill(order, problem.size())
    oldest = np.full(int(pools.max(initial=0)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(oldest, pools[pruned], age[pruned])
    boundary = oldest[pools]
    guarantee = problem.budget.epsilon is not None
    back = ~pruned & (age > (0 if guarantee else boundary))
    out = (age < boundary) & pruned & (not guarantee)
    given = constraints or Constraints()
    return Constraints(
        keep=torch.cat([problem.held, _samples(problem, back)]),
        prune=torch.cat([problem.forced, _samples(problem, out)]),
        groups=given.groups,
    )


def feasible(problem: Problem, constraints: Constraints) -> bool:
    """Whether a rotation leaves a set of the size that the problem has without it."""
    turned = Problem.of(problem.influence, problem.budget, problem.labels, constraints)
    try:
        size, same = turned.size(), problem.size()
    except ValueError:
        return False
    reached = len(turned.samples(turned.random_start(size, 0)[0]))
    return reached >= len(problem.samples(problem.random_start(same, 0)[0]))


def _samples(problem: Problem, units: np.ndarray) -> Tensor:
    return problem.members[torch.from_numpy(units)[problem.unit_of_members()]]
