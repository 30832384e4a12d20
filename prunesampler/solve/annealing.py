"""Simulated annealing, compiled, on one core of the CPU: over swaps, and for sparse rows over flips.

Each move proposes to swap a random pruned with a random kept sample within reach, Metropolis' rule
accepts or rejects it, and the temperature falls geometrically. The paper names simulated annealing;
the temperatures and the reach (see `prunesampler.solve.scaled`) are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.checks import checked_seed
from prunesampler.base.progress import Progress
from prunesampler.influence.influence import Influence
from prunesampler.influence.sparse import MOST_ENTRIES, SparseRows
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.epsilon import Trials
from prunesampler.solve.flips import flip
from prunesampler.solve.kernels import metropolis_moves
from prunesampler.solve.problem import Bools, Ints, Problem, Solution
from prunesampler.solve.scaled import SMALL, Scaled

MOVES_PER_SAMPLE, MIN_MOVES = 50, 1_000_000
FLIPS_PER_SAMPLE, MOST_ROOM, MOST_SWEEPS = 20, 5.0, 2000
"""Flips, times the samples per parameter where they are between one and ``MOST_ROOM``: the more
there is to choose from, the longer the search goes on finding better sets."""
BLOCKS, REFRESH = 100, 25
"""Moves come in ``BLOCKS`` blocks; before every ``REFRESH``-th the running sum is recomputed."""


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
    """Simulated annealing over swaps of one pruned and one kept sample.

    The arguments up to ``progress`` are those of every solver: see
    `prunesampler.solve.solvers.Solver`. ``moves`` is the number of swaps to propose, by default 50
    per free sample and at least 1,000,000.

    Raises:
        ValueError: If the budget cannot be met, or a constraint, cost or seed is not valid.

    Examples:
        >>> import torch
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.5], [0.5]]))
        >>> anneal(influence, Budget(count=2), moves=10_000).pruned.tolist()
        [0, 1]
    """
    seed = checked_seed(seed)
    problem = Problem.of(influence, budget, labels, constraints, cost)
    if moves is not None and moves < 1:
        raise ValueError(f"moves must be at least 1, got {moves}")
    trials = Trials(problem, progress)
    for trial, count in trials:
        trials.note(trial.samples(_cooled(trial, count, seed, moves, trials.progress)))
    return trials.solution


def default_flips(samples: int, room: float, entries: float) -> float:
    """Number of flips by default; at least what takes as long as ``MIN_MOVES`` of short rows.

    Args:
        samples: Number of samples to choose from.
        room: Number of samples per parameter.
        entries: Entries of a sample on average; a sequence has those of all its tokens.

    Examples:
        >>> default_flips(10**6, 2.0, 8.0) / 10**6, default_flips(1000, 0.1, 4.0), default_flips(1000, 0.1, 800.0)
        (40.0, 1000000.0, 20000.0)
    """
    each = FLIPS_PER_SAMPLE * min(MOST_ROOM, max(1.0, room))
    return max(each * samples, MIN_MOVES * min(1.0, MOST_ENTRIES / max(1.0, entries)))


def _cooled(
    problem: Problem, count: int, seed: int, moves: int | None, progress: Progress | None
) -> Bools:
    """Which free samples to prune, by flips of sparse rows or by swaps of others."""
    influence = problem.influence
    if isinstance(influence.whitened, SparseRows):
        room = len(influence) / math.prod(influence.gradients.shape)
        entries = len(influence.whitened.values) / len(influence)
        flips = default_flips(len(problem), room, entries) if moves is None else moves
        sweeps = min(MOST_SWEEPS, max(1, round(flips / len(problem))))
        return flip(problem, count, seed, sweeps, progress)
    moves = max(MOVES_PER_SAMPLE * len(problem), MIN_MOVES) if moves is None else moves
    cool = _anneal_small if len(problem) <= SMALL else _anneal_large
    return cool(Scaled.of(problem, count), seed, moves, progress)


def _anneal_large(scaled: Scaled, seed: int, moves: int, progress: Progress | None) -> Bools:
    """Which free samples to prune: the last set, annealed in float32."""
    state, nobody = _State(scaled, seed, torch.float32), np.zeros(0, dtype=np.int64)
    for temperatures in _blocks(scaled, moves, state, progress):
        state.move(temperatures, nobody, np.inf)
    return state.pruned


def _anneal_small(scaled: Scaled, seed: int, moves: int, progress: Progress | None) -> Bools:
    """Which free samples to prune: the best set met, annealed in float64.

    Few samples may cancel almost exactly; then float32 cannot tell which set is best.
    """
    state = _State(scaled, seed, torch.float64)
    best, lowest = state.pruned.copy(), np.inf
    for temperatures in _blocks(scaled, moves, state, progress):
        before = float(scaled.costs[state.pruned].sum())
        now = float(np.sqrt(state.square)) + before
        if now < lowest:
            lowest, best = now, state.pruned.copy()
        champion = state.reachable(float(temperatures[0]))[0].copy()
        energy = state.move(temperatures, champion, lowest - before)
        if energy < lowest - before:
            lowest = energy + before
            best[:] = False
            best[champion] = True
    return best


class _State:
    """The current set, the sum of its rows, and the state of the random numbers."""

    def __init__(self, scaled: Scaled, seed: int, precision: torch.dtype) -> None:
        self.scaled, self.precision = scaled, precision
        self.pruned, self.spare = scaled.problem.random_start(scaled.count, seed)
        self._left = scaled.rows.left.to(precision).contiguous().numpy()
        self._right = scaled.rows.right.to(precision).contiguous().numpy()
        self._squares = scaled.rows.norms().square().numpy()
        self._classes, self._pools = scaled.problem.classes(), scaled.problem.pools()
        self._random = np.array([seed], dtype=np.uint64)
        self.refresh()

    def refresh(self) -> None:
        """Recompute the running sum, which drifts in float32."""
        self._sum = self.scaled.state(self.pruned).to(self.precision).numpy()

    @property
    def square(self) -> float:
        """Squared norm of the running sum."""
        return float(np.square(self._sum, dtype=np.float64).sum())

    def reachable(self, temperature: float) -> tuple[Ints, Ints, Ints]:
        """Pruned samples to swap, kept ones pool by pool, and where each pool of these begins."""
        inside, outside = self.scaled.within_reach(self.pruned, temperature)
        ordered = outside[np.argsort(self._pools[outside], kind="stable")]
        pools = int(self._pools.max()) + 1
        starts = np.searchsorted(self._pools[ordered], np.arange(pools + 1)).astype(np.int64)
        return inside, ordered, starts

    def move(self, temperatures: NDArray[np.float64], champion: Ints, lowest: float) -> float:
        """Propose one swap per temperature; the kernel writes the best set met to ``champion``."""
        inside, outside, starts = self.reachable(float(temperatures[0]))
        energy = metropolis_moves(
            self._left, self._right, self._squares, self.scaled.costs, self._classes, self.spare,
            inside, outside, self._pools, starts, self._sum, self.square, temperatures,
            self._random, champion, lowest,
        )  # fmt: skip
        self.pruned[inside], self.pruned[outside] = True, False
        return float(energy)


def _blocks(
    scaled: Scaled, moves: int, state: _State, progress: Progress | None
) -> Iterator[NDArray[np.float64]]:
    """Temperatures of the moves, block by block; recomputes the running sum between blocks."""
    edges = [block * (moves // BLOCKS) + min(block, moves % BLOCKS) for block in range(BLOCKS + 1)]
    for block in range(BLOCKS):
        if block and block % REFRESH == 0:
            state.refresh()
        temperatures = scaled.temperatures(moves, edges[block], edges[block + 1])
        if len(temperatures) and state.pruned.any() and not state.pruned.all():
            yield temperatures
        if progress:
            progress(block + 1, BLOCKS)
