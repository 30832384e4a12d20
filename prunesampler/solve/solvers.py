"""Solvers of the selection problem: which samples to prune, as a group.

Problem B (``fraction``, ``count``): of all sets of m samples choose one of smallest shift.
Problem A (``epsilon``): of all sets with ``||shift|| <= epsilon`` choose one of most samples.
Both are from Yang et al., ICLR 2023, section 3.2; both are combinatorial, so `anneal` and
`exchange` find good sets, and only `exhaustive` finds the best.

A solver is a function ``(influence, budget, *, labels, constraints, cost, seed, progress) ->
Solution``. It uses no global random numbers, and the same arguments give the same set on the same
hardware. Set its other options with ``functools.partial``. With a cost, the energy is the norm as a
share of that of a random set of the same size, plus the mean cost of the pruned samples.

The search runs in the whitened float32 coordinates of the influence; the norm in the solution is
computed afresh, in float64 and in the influence's metric, from the set that is returned.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from prunesampler.base.progress import Progress
from prunesampler.influence.influence import Influence
from prunesampler.solve.budget import Budget
from prunesampler.solve.constraints import Constraints
from prunesampler.solve.epsilon import Minimise, Solution, largest_within
from prunesampler.solve.problem import Problem

__all__ = ["Minimise", "Progress", "Solution", "Solver", "cheapest", "exhaustive", "solve"]

EXHAUSTIVE = 24
"""Units that `exhaustive` takes at most: 16 million sets."""


class Solver(Protocol):
    """What the pruner calls."""

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
        """Choose the samples to prune."""


def solve(problem: Problem, minimise: Minimise, progress: Progress | None) -> Solution:
    """Solve either problem with a function that finds a set of a given size with low energy.

    Raises:
        ValueError: when the budget cannot be met.
    """
    size, epsilon = problem.size(), problem.budget.epsilon
    if not len(problem):  # constraints have settled everything
        return Solution(problem.forced, problem.influence.shift_norm(problem.forced))
    if epsilon is not None:
        return largest_within(problem, size, epsilon, minimise, progress)
    pruned = minimise(problem, size, progress)
    return Solution(pruned, problem.influence.shift_norm(pruned))


def exhaustive(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    constraints: Constraints | None = None,
    cost: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Try every set and return the best, in the influence's metric. For tests: n <= 24.

    With epsilon every size is tried, from the largest down.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        constraints: what else to respect.
        cost: of pruning each sample, shape (n,); see the module.
        seed: unused, as every solver takes one.
        progress: see :data:`Progress`.

    Raises:
        ValueError: when there are more than 24 units, or the budget cannot be met.
    """
    del seed
    problem = Problem.of(influence, budget, labels, constraints, cost)
    if len(problem) > EXHAUSTIVE:
        raise ValueError(
            f"exhaustive search takes at most {EXHAUSTIVE} samples, got {len(problem)}; use anneal"
        )
    sets = _every_set(len(problem))
    sizes = sets @ problem.sizes().double() + len(problem.forced)
    squares = _squared_sums(problem, sets)

    norms = squares.clamp(min=0).sqrt()
    best: Solution | None = None
    epsilon = budget.epsilon
    top = problem.size()
    for size in range(top, (len(problem.forced) if epsilon is not None else top) - 1, -1):
        allowed = _within(sets, problem, problem.limits(size).floors) & (sizes <= size)
        least = len(problem.forced) + int(problem.limits(size).least[0])
        short = (least - sizes).clamp(min=0)
        allowed &= short == short[allowed].min()
        price = sets @ torch.from_numpy(problem.units(max(1, size)).costs)
        energy = norms + _random_norm(problem, size) * price
        if epsilon is not None:
            allowed &= norms * len(influence) / (len(influence) - sizes) <= epsilon * (1 + 1e-12)
        if allowed.any():
            energy[~allowed] = math.inf
            pruned = problem.samples(sets[energy.argmin()].bool().numpy())
            best = Solution(pruned, influence.shift_norm(pruned) if len(pruned) else 0.0)
            break
    if progress:
        progress(1, 1)
    if best is None:
        raise ValueError(f"no set with the samples in prune= shifts by at most epsilon={epsilon}")
    return best


def cheapest(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    constraints: Constraints | None = None,
    cost: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Prune the cheapest samples, whatever their shift: score-based selection.

    With `prunesampler.costs.el2n` as cost this is pruning by EL2N, and so on. Exact for single
    samples: the cheapest that the floors let go. Groups go by their cost per sample.

    Args:
        influence: of n samples, for the norm in the solution.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        constraints: what else to respect.
        cost: of pruning each sample, shape (n,); needed. Equal costs go in random order.
        seed: of that order.
        progress: see :data:`Progress`.

    Raises:
        ValueError: without a cost, with epsilon, or when the budget cannot be met.
    """
    if cost is None or budget.epsilon is not None:
        raise ValueError("cheapest needs a cost and a fraction or count; give them, or use anneal")
    problem = Problem.of(influence, budget, labels, constraints, cost)
    chance = np.random.default_rng(seed).permutation(len(problem))
    price = problem.units(1).costs / problem.sizes().numpy()
    order = chance[np.argsort(price[chance], kind="stable")]

    def minimise(problem: Problem, size: int, progress: Progress | None) -> Tensor:
        if progress:
            progress(1, 1)
        return problem.samples(problem.fill(order, size)[0])

    return solve(problem, minimise, progress)


def _every_set(count: int) -> Tensor:
    """All subsets of so many units as rows of zeros and ones, float64, shape (2^count, count)."""
    return ((torch.arange(2**count)[:, None] >> torch.arange(count)) & 1).double()


def _squared_sums(problem: Problem, sets: Tensor) -> Tensor:
    """Squared norm, in the metric, of the summed influence of each set, forced samples included."""
    influence, n = problem.influence, len(problem.influence)
    sums = torch.stack([influence.gradient_sum(problem.forced), *problem.gradient_sums()])
    shifts = influence.factorised.apply_inverse(sums)
    gram = shifts.flatten(1) @ influence.metric(influence.factorised, shifts).flatten(1).T
    return (sets @ gram[1:, 1:] * sets).sum(1) / n**2 + (2 * sets @ gram[1:, 0] + gram[0, 0]) / n**2


def _random_norm(problem: Problem, size: int) -> float:
    """Root mean square, in the metric, of the summed influence of random sets of single samples."""
    influence, n = problem.influence, len(problem.influence)
    spread = influence.squares(
        torch.stack([influence.gradient_sum(torch.tensor([i])) for i in range(n)])
    )
    return math.sqrt(size * (n - size) / (n * (n - 1)) * float(spread.sum())) / n


def _within(sets: Tensor, problem: Problem, floors: np.ndarray) -> Tensor:
    """Which sets leave every class its floor."""
    if not len(floors) or problem.labels is None:
        return torch.ones(len(sets), dtype=torch.bool)
    classes = torch.nn.functional.one_hot(problem.labels, len(floors)).double()
    pruned = torch.zeros(len(problem), len(floors), dtype=torch.float64)
    pruned.index_add_(0, problem.unit_of_members(), classes[problem.members])
    stay = classes[torch.cat([problem.members, problem.held])].sum(0)
    return (stay - sets @ pruned >= torch.from_numpy(floors)).all(1)
