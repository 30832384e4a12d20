"""Simulated annealing over swaps, one at a time on the CPU or in batches on tensors.

Both propose random swaps of a pruned and a kept sample and accept by Metropolis' rule while the
temperature falls geometrically, in the whitened coordinates of the influence. The paper names
simulated annealing; the schedule is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.influence import Influence, RankOne
from prunesampler.metropolis import metropolis_batch, metropolis_moves
from prunesampler.selection import Budget
from prunesampler.solvers import Progress, Solution, solve_by_size

MOVES_PER_SAMPLE = 100
MIN_MOVES = 2_000_000
HOTTEST, COLDEST = 1.0, 1e-4
"""First and last temperature, as a share of the mean row norm."""
BLOCKS, REFRESH = 100, 10
"""Moves come in so many blocks; the running sum is formed anew before every so many of them."""
SMALL = 1000
"""Up to this many samples `anneal` returns the best set it met, beyond it the last, which then is as
good: few samples make rugged problems, where the best set is passed and left again."""


@dataclass(frozen=True)
class _Search:
    """The search problem in units of the mean row norm.

    ``order`` holds all n indices; the first ``size`` of them are the pruned ones.
    """

    rows: RankOne
    mean: Tensor
    labels: NDArray[np.int64]
    floors: NDArray[np.int64]

    @classmethod
    def of(cls, influence: Influence, labels: Tensor | None, floors: Tensor | None) -> _Search:
        unit = float(influence.search.norms().mean()) or 1.0
        rows = RankOne(influence.search.left / unit, influence.search.right)
        if labels is None or floors is None:
            labels = torch.zeros(len(rows), dtype=torch.int64)
            floors = torch.zeros(1, dtype=torch.int64)
        return cls(rows, influence.search_mean / unit, labels.numpy(), floors.numpy())

    def start(self, size: int, seed: int) -> NDArray[np.int64]:
        """A random order whose first ``size`` samples leave every class its floor."""
        order = np.random.default_rng(seed).permutation(len(self.rows))
        by_class = order[np.argsort(self.labels[order], kind="stable")]
        counts = np.bincount(self.labels, minlength=len(self.floors))
        place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        reserved = np.zeros(len(order), dtype=bool)
        reserved[by_class[place < np.repeat(self.floors, counts)]] = True
        return np.concatenate([order[~reserved[order]], order[reserved[order]]])

    def state(self, pruned: NDArray[np.int64]) -> Tensor:
        """Sum of the pruned rows less their means, shape (K, D), float64."""
        return self.rows.sum(torch.from_numpy(pruned)) - len(pruned) * self.mean

    def kept_per_class(self, order: NDArray[np.int64], size: int) -> NDArray[np.int64]:
        return np.bincount(self.labels[order[size:]], minlength=len(self.floors))


def anneal(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    moves: int | None = None,
) -> Solution:
    """Simulated annealing over swaps of one pruned and one kept sample, compiled, on one core.

    Args:
        influence: of n samples, on the CPU or not; the search runs on the CPU.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        seed: of the search's own random numbers.
        progress: see :data:`Progress`.
        moves: swaps to propose; default 100 per sample, at least 2,000,000.

    Raises:
        ValueError: when the budget cannot be met.
    """
    moves = max(MOVES_PER_SAMPLE * len(influence), MIN_MOVES) if moves is None else moves
    search = _Search.of(influence, labels, budget.floors(labels))
    left = search.rows.left.cpu().contiguous().numpy()
    right = search.rows.right.cpu().contiguous().numpy()
    squares = search.rows.norms().square().cpu().numpy()

    def minimise(size: int, progress: Progress | None) -> Tensor:
        order = search.start(size, seed)
        kept = search.kept_per_class(order, size)
        best = order[: size if len(order) <= SMALL else 0].copy()
        best_square = float(search.state(order[:size]).square().sum())
        random_state = np.array([seed], dtype=np.uint64)
        for block in range(BLOCKS):
            if block % REFRESH == 0:  # the running float32 sum drifts
                state = search.state(order[:size]).float().cpu().numpy()
            best_square = metropolis_moves(
                left, right, squares, order, size, state,
                float(np.square(state, dtype=np.float64).sum()), search.labels, kept, search.floors,
                random_state, _temperatures(block, BLOCKS, moves), best, best_square,
            )  # fmt: skip
            if progress:
                progress(block + 1, BLOCKS)
        return _ascending(best if len(best) else order[:size])

    return solve_by_size(influence, budget, labels, minimise, progress)


def exchange(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    moves: int | None = None,
    batch: int = 128,
    device: torch.device | str | None = None,
) -> Solution:
    """The same annealing in batches of swaps, as matrix products, on a GPU if asked.

    A batch pairs pruned with kept samples, all different; their Gram matrix tells what each swap
    does to the effect of the others, so that accepting them in turn is exact.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        seed: of the search's own random numbers.
        progress: see :data:`Progress`.
        moves: swaps to propose; default 100 per sample, at least 2,000,000. Fewer are proposed
            where fewer than a batch are pruned or kept.
        batch: swaps per batch, time and memory only; a GPU likes more.
        device: where to search; default where the influence lies.

    Raises:
        ValueError: when the budget cannot be met.
    """
    moves = max(MOVES_PER_SAMPLE * len(influence), MIN_MOVES) if moves is None else moves
    search = _Search.of(influence, labels, budget.floors(labels))
    if device is not None:
        rows = RankOne(search.rows.left.to(device), search.rows.right.to(device))
        search = replace(search, rows=rows, mean=search.mean.to(device))

    def minimise(size: int, progress: Progress | None) -> Tensor:
        order = search.start(size, seed)
        kept = search.kept_per_class(order, size)
        rng = np.random.default_rng(seed)
        width = min(batch, size, len(order) - size)
        rounds = max(1, moves // batch)
        every = max(1, rounds // 100)
        per_pass = min(size, len(order) - size) // width
        for number in range(rounds):
            place = number % per_pass
            if place == 0:
                rng.shuffle(order[:size])
                rng.shuffle(order[size:])
                state = search.state(order[:size]).float()
            out = slice(place * width, (place + 1) * width)
            into = slice(size + out.start, size + out.stop)
            accepted = _exchange_round(
                search, state, order[out], order[into], kept,
                _temperatures(number, rounds, width * rounds), rng,
            )  # fmt: skip
            swapped = np.where(accepted, order[into], order[out])
            order[into] = np.where(accepted, order[out], order[into])
            order[out] = swapped
            if progress and ((number + 1) % every == 0 or number + 1 == rounds):
                progress(number + 1, rounds)
        return _ascending(order[:size])

    return solve_by_size(influence, budget, labels, minimise, progress)


def _temperatures(block: int, blocks: int, moves: int) -> NDArray[np.float64]:
    """Temperatures of one block's share of the moves, falling geometrically over all blocks."""
    first, last = block * moves // blocks, (block + 1) * moves // blocks
    share = np.arange(first, last) / max(1, moves - 1)
    return np.asarray(HOTTEST * (COLDEST / HOTTEST) ** share)


def _exchange_round(
    search: _Search,
    state: Tensor,
    out: NDArray[np.int64],
    into: NDArray[np.int64],
    kept: NDArray[np.int64],
    temperatures: NDArray[np.float64],
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Offer the swaps out[k] <-> into[k]; update ``state`` and ``kept``; say which were taken."""
    device = search.rows.left.device
    old = search.rows[torch.from_numpy(out).to(device)]
    new = search.rows[torch.from_numpy(into).to(device)]
    left, right = torch.cat([new.left, old.left]), torch.cat([new.right, old.right])
    gram = (left @ left.T) * (right @ right.T)
    width = len(out)
    swaps = (
        gram[:width, :width] - gram[:width, width:] - gram[width:, :width] + gram[width:, width:]
    )
    slopes = ((left @ state) * right).sum(1)
    accepted = metropolis_batch(
        (slopes[:width] - slopes[width:]).double().cpu().numpy(),
        swaps.cpu().numpy(),
        float(state.double().square().sum()),
        search.labels[out], search.labels[into], kept, search.floors,
        temperatures, rng.random(width),
    )  # fmt: skip
    sign = torch.from_numpy(np.concatenate([accepted, accepted])).to(left)
    sign[width:] *= -1
    state += (left * sign[:, None]).T @ right
    return accepted


def _ascending(indices: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.sort(indices))
