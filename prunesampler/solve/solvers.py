"""Solvers of the selection problem: which samples to prune, as a group.

Problem B (``fraction``, ``count``): of all sets of m samples choose one with the smallest shift.
Problem A (``epsilon``): of all sets with ``||shift|| <= epsilon`` choose one with most samples.
Both are from Yang et al., ICLR 2023, section 3.2. Both are combinatorial: `anneal` finds good sets,
and only trying every set would find the best.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from prunesampler.base.progress import Progress
from prunesampler.influence.influence import Influence
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.problem import Problem, Solution


class Solver(Protocol):
    """A function that chooses the samples to prune.

    It uses no global random numbers, and the same arguments give the same set on the same hardware.
    Options of its own are set with ``functools.partial``. A solver of your own builds the
    `prunesampler.solve.problem.Problem`, and iterates over its `prunesampler.solve.epsilon.Trials`
    to serve both kinds of budget.

    Solvers search among the whitened rows of the influence, which are
    `prunesampler.influence.rows.RankOne` or, for large heads,
    `prunesampler.influence.sparse.SparseRows`; the norm in the solution is
    computed from the returned set, in float64 and in the influence's metric.
    """

    def __call__(
        self,
        influence: Influence,
        budget: Budget,
        *,
        labels: Tensor | None = None,
        constraints: Constraints | None = None,
        cost: Tensor | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Solution:
        """Choose the samples to prune.

        Args:
            influence: Influence of n samples.
            budget: How much to prune.
            labels: Class of every sample, int64, shape (n,), for the budget's floors; or None.
            constraints: Samples that must stay or go, or None.
            cost: Cost of pruning each sample, shape (n,), or None. The energy of a set is then the
                norm of its shift as a share of a random set's, plus the mean cost of its samples.
            seed: Seed of the solver's own random numbers.
            progress: Called now and then with the steps done and the steps in all, or None.

        Raises:
            ValueError: If the budget cannot be met, or an argument is not valid.
        """


def cheapest(problem: Problem, seed: int) -> Solution:
    """Prune the samples of lowest cost that floors and constraints allow, whatever their shift.

    Args:
        problem: A problem with a cost, and a fraction or a count as budget.
        seed: Seed of the order in which samples of equal cost are pruned.

    Raises:
        ValueError: If there is no cost, the budget is an epsilon, or it cannot be met.

    Examples:
        >>> import torch
        >>> influence = Influence.from_vectors(torch.randn(4, 2))
        >>> cost = torch.tensor([0.3, 0.1, 0.2, 0.4])
        >>> cheapest(Problem.of(influence, Budget(count=2), cost=cost), seed=0).pruned.tolist()
        [1, 2]
    """
    if problem.cost is None:
        raise ValueError(
            "an objective with shift=False prunes by cost alone, but its cost() returned None: let it "
            "return one number per sample, or leave shift at True"
        )
    if problem.budget.epsilon is not None:
        raise ValueError(
            f"an objective with shift=False prunes by price alone, which epsilon="
            f"{problem.budget.epsilon} says nothing about; give the budget a fraction or a count"
        )
    count = problem.count()
    chance = np.random.default_rng(seed).permutation(len(problem))
    order = chance[np.argsort(problem.costs(1)[chance], kind="stable")]
    return problem.solution(problem.samples(problem.fill(order, count)[0]))
