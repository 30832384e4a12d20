"""Annealing in tiles of swaps on tensors: the heavy work is matrix products, on a GPU if asked."""

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
from prunesampler.solve.kernels import Limits, metropolis_tile
from prunesampler.solve.problem import Bools, Ints, Problem
from prunesampler.solve.search import Search, moves_for
from prunesampler.solve.solvers import solve


def exchange(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    constraints: Constraints | None = None,
    cost: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    moves: int | None = None,
    tile: int = 128,
    device: torch.device | str | None = None,
) -> Solution:
    """Annealing within tiles of pruned and kept samples, one matrix product for all their swaps.

    The Gram matrix of a tile makes every swap within it a look-up. On a GPU the products run there;
    the look-ups are compiled and run on the CPU.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        constraints: what else to respect.
        cost: of pruning each sample, shape (n,); see `prunesampler.solve.solvers`.
        seed: of the search's own random numbers.
        progress: see `prunesampler.base.progress.Progress`.
        moves: swaps to propose; default 50 per free sample, at least 1,000,000, and four times as
            many as that, since here they cost less.
        tile: pruned samples in a tile, and as many kept ones.
        device: where to search; default where the influence lies.

    Raises:
        ValueError: when the budget cannot be met, or a constraint, cost or seed is not valid.
    """
    seed = checked_seed(seed)
    if tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    problem = Problem.of(influence, budget, labels, constraints, cost)
    moves = 4 * moves_for(None, len(problem)) if moves is None else moves_for(moves, 0)

    def minimise(problem: Problem, size: int, progress: Progress | None) -> Tensor:
        search = Search.of(problem, size, device)
        return problem.samples(_exchange(search, seed, moves, tile, progress))

    return solve(problem, minimise, progress)


def _exchange(search: Search, seed: int, moves: int, tile: int, progress: Progress | None) -> Bools:
    """Which free units to prune."""
    pruned, limits = search.start(seed)
    pool = search.problem.pools()
    rng = np.random.default_rng(seed)
    random_state = np.array([seed], dtype=np.uint64)
    rounds = max(1, moves // tile**2)
    waiting: list[Ints] = []
    for number, temperature in enumerate(search.temperatures(rounds)):
        if pruned.all() or not pruned.any():
            break
        if not waiting:
            state = search.state(pruned)
            waiting = _tiles(*search.within_reach(pruned, temperature), pool, tile, rng)
            every = max(1, len(waiting))
        chosen = waiting.pop()
        _offer(search, limits, state, pruned, chosen, float(temperature), tile**2, random_state)
        if progress and (number % every == 0 or number + 1 == rounds):
            progress(number + 1, rounds)
    return pruned


def _tiles(
    inside: Ints, outside: Ints, pool: Ints, tile: int, rng: np.random.Generator
) -> list[Ints]:
    """Disjoint tiles, pruned units first, as many of either kind, all of one pool; at least one."""
    rng.shuffle(inside)
    rng.shuffle(outside)
    tiles = []
    for name in np.unique(pool[inside]):
        here, there = inside[pool[inside] == name], outside[pool[outside] == name]
        width = min(tile, len(here), len(there))
        for k in range(min(len(here), len(there)) // width if width else 0):
            part = slice(k * width, (k + 1) * width)
            tiles.append(np.concatenate([here[part], there[part]]))
    rng.shuffle(tiles)
    return tiles or [np.concatenate([inside[:1], outside[:1]])]


def _offer(
    search: Search,
    limits: Limits,
    state: Tensor,
    pruned: Bools,
    chosen: Ints,
    temperature: float,
    proposals: int,
    random_state: np.ndarray,
) -> None:
    """Anneal one tile at one temperature; update ``state`` and ``pruned`` in place."""
    rows = search.rows[torch.from_numpy(chosen).to(state.device)]
    gram = (rows.left @ rows.left.T) * (rows.right @ rows.right.T)
    slopes = ((rows.left @ state.to(rows.left.dtype)) * rows.right).sum(1)
    place = np.arange(len(chosen))
    metropolis_tile(
        gram.cpu().numpy(), slopes.double().cpu().numpy(), float(state.square().sum()), chosen,
        place, search.units, limits, temperature, proposals, random_state,
    )  # fmt: skip
    half = len(chosen) // 2
    now = np.zeros(len(chosen))
    now[place[:half]] = 1
    change = torch.from_numpy(now - pruned[chosen]).to(rows.left)
    state += ((rows.left * change[:, None]).T @ rows.right).double()
    pruned[chosen] = now.astype(bool)
