"""Redrawing: which samples must come back, and which may be left out again.

Every sample has an age: the number of draws in a row for which it was left out or, as a negative
number, kept. The next set leaves out the samples with the lowest ages, so those left out longest
come back first and all are left out about equally often. Among samples of the same age the solver
chooses, so that the shift is small.

This is the limit of a linear cost on the ages as its weight goes to infinity.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunesampler.solve.budget import Constraints
from prunesampler.solve.problem import Problem


def older(ages: Tensor, pruned: Tensor) -> Tensor:
    """Ages after a draw, int64, shape (n,).

    Args:
        ages: Ages before the draw, int64, shape (n,); zeros at first.
        pruned: Indices that the draw left out.

    Examples:
        >>> older(torch.tensor([0, 2, -1]), torch.tensor([1])).tolist()
        [-1, 3, -2]
    """
    out = torch.zeros(len(ages), dtype=torch.bool)
    out[pruned] = True
    return torch.where(out, ages.clamp(min=0) + 1, ages.clamp(max=0) - 1)


def rotated(problem: Problem, ages: Tensor) -> Constraints:
    """Add to the problem's constraints the samples that must come back, and those that must go.

    If a share k of the samples that are free to go is kept, each of them is kept again within
    ``ceil(1 / k) + 1`` draws. With epsilon, k is the share that the fraction's cap keeps, and no
    sample is forced to go, since that might exceed epsilon.

    Args:
        problem: Influence and limits, not yet rotated.
        ages: Ages of all samples, see :func:`older`.

    Examples:
        >>> from prunesampler import Budget, Influence
        >>> problem = Problem.of(Influence.from_vectors(torch.randn(4, 2)), Budget(count=2))
        >>> turn = rotated(problem, torch.tensor([1, 1, -1, -1]))
        >>> turn.keep.tolist(), turn.prune.tolist()
        ([0, 1], [])
    """
    age = ages[problem.free].numpy()
    pools = problem.pools()
    pruned, _ = problem.fill(np.argsort(age, kind="stable"), problem.count())
    oldest = np.full(int(pools.max(initial=0)) + 1, np.iinfo(np.int64).min)
    np.maximum.at(oldest, pools[pruned], age[pruned])
    boundary = oldest[pools]
    within_epsilon = problem.budget.epsilon is not None
    back = ~pruned & (age > (0 if within_epsilon else boundary))
    out = (age < boundary) & pruned & (not within_epsilon)
    return Constraints(
        keep=torch.cat([problem.held, problem.free[torch.from_numpy(back)]]),
        prune=torch.cat([problem.forced, problem.free[torch.from_numpy(out)]]),
    )
