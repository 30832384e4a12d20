"""Simulated annealing over swaps, one at a time, compiled, on one core of the CPU.

A random pruned and a random kept unit within reach are offered for a swap, Metropolis' rule accepts
or refuses, and the temperature falls geometrically. The paper names simulated annealing; schedule
and reach (see `prunesampler.solve.search`) are ours.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunesampler.base.checks import checked_seed
from prunesampler.base.progress import Progress
from prunesampler.influence.influence import Influence
from prunesampler.solve.budget import Budget
from prunesampler.solve.constraints import Constraints
from prunesampler.solve.epsilon import Solution
from prunesampler.solve.kernels import metropolis_moves
from prunesampler.solve.problem import Bools, Ints, Problem
from prunesampler.solve.search import SMALL, Search, moves_for
from prunesampler.solve.solvers import solve

BLOCKS, REFRESH = 100, 25
"""Moves come in so many blocks; the running sum is formed anew before every so many of them."""


def anneal(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    constraints: Constraints | None = None,
    cost: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    moves: int | None = None,
) -> Solution:
    """Simulated annealing over swaps of one pruned and one kept sample, or group.

    Args:
        influence: of n samples, on the CPU or not; the search runs on the CPU.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        constraints: what else to respect.
        cost: of pruning each sample, shape (n,); see `prunesampler.solve.solvers`.
        seed: of the search's own random numbers.
        progress: see `prunesampler.base.progress.Progress`.
        moves: swaps to propose; default 50 per free sample, at least 1,000,000.

    Raises:
        ValueError: when the budget cannot be met, or a constraint, cost or seed is not valid.
    """
    seed = checked_seed(seed)
    problem = Problem.of(influence, budget, labels, constraints, cost)
    moves = moves_for(moves, len(problem))

    def minimise(problem: Problem, size: int, progress: Progress | None) -> Tensor:
        search = Search.of(problem, size, "cpu")
        return problem.samples(_anneal(search, seed, moves, progress))

    return solve(problem, minimise, progress)


def _anneal(search: Search, seed: int, moves: int, progress: Progress | None) -> Bools:
    """Which free units to prune."""
    keep_best = len(search.problem) <= SMALL
    # Where few samples can cancel almost exactly, float32 does not tell the best set.
    precision = torch.float64 if keep_best else torch.float32
    left = search.rows.left.to(precision).contiguous().numpy()
    right = search.rows.right.to(precision).contiguous().numpy()
    squares = search.rows.norms().square().numpy()
    pruned, limits = search.start(seed)
    pool = search.problem.pools()
    random_state = np.array([seed], dtype=np.uint64)
    best, lowest, nearest = pruned.copy(), np.inf, -1
    costs = search.units.costs
    edges = [block * (moves // BLOCKS) + min(block, moves % BLOCKS) for block in range(BLOCKS + 1)]
    for block in range(BLOCKS):
        temperatures = search.temperatures(moves, edges[block], edges[block + 1])
        if block % REFRESH == 0:  # the running float32 sum drifts
            state = search.state(pruned).to(precision).numpy()
        if not len(temperatures) or pruned.all() or not pruned.any():
            continue
        inside, outside = search.within_reach(pruned, float(temperatures[0]))
        outside, starts = _by_pool(outside, pool)
        square = float(np.square(state, dtype=np.float64).sum())
        before = float(costs[pruned].sum())
        now = float(np.sqrt(square)) + before
        near = int(min(limits.pruned[0], limits.least[0]))
        if now < lowest or near > nearest:  # with groups a set can come nearer to the budget
            lowest, best, nearest = now, pruned.copy(), near
        champion = inside.copy() if keep_best else inside[:0].copy()
        energy = metropolis_moves(
            left, right, squares, search.units, limits, inside, outside, pool, starts, state,
            square, temperatures, random_state, champion, lowest - before,
        )  # fmt: skip
        if energy < lowest - before:
            lowest = energy + before
            best[:] = False
            best[champion] = True
        pruned[inside], pruned[outside] = True, False
        if progress:
            progress(block + 1, BLOCKS)
    return best if keep_best else pruned


def _by_pool(units: Ints, pool: Ints) -> tuple[Ints, Ints]:
    """Units pool by pool, and where each pool begins."""
    ordered = units[np.argsort(pool[units], kind="stable")]
    count = int(pool.max()) + 1 if len(pool) else 1
    return ordered, np.searchsorted(pool[ordered], np.arange(count + 1)).astype(np.int64)
