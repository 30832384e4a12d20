"""Simulated annealing over flips: one sample at a time is pruned or kept after all. For sparse rows.

A flip looks at the entries of one sample, a swap at those of two, and a flip needs no partner, so a sweep
goes through the samples one after the other. The number of pruned samples is held by a penalty,
``PENALTY * temperature * (pruned - count)^2`` beside the squared norm, and made exact at the end. (A
penalty that does not fall with the temperature freezes the search: then every flip costs more than it
gains.) The start is a greedy
pass, the samples with the longest rows first.

The energy is the same as that of swaps: the norm of the sum of the pruned rows, plus the costs.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from prunesampler.base.compiled import compiled, half, next_random
from prunesampler.base.progress import Progress
from prunesampler.influence.sparse import MOST_ENTRIES, SparseRows
from prunesampler.solve.kernels import rise
from prunesampler.solve.problem import Bools, Ints, Problem

HOTTEST, COLDEST = 0.3, 0.005
"""First and last temperature of squared norms, as a share of the mean squared norm of a row."""
PENALTY = 0.007
"""Share of the temperature that one sample too many costs: some ten are in equilibrium at any."""
OFFERED, LEAST_OFFERED = 2000, 100
"""Samples of which the best is flipped to make the count exact; fewer where each has many entries."""
REFRESH = 10
"""Sweeps after which the running sums are formed anew."""

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Places = NDArray[np.int32]


def flip(problem: Problem, count: int, seed: int, sweeps: int, progress: Progress | None) -> Bools:
    """Which free samples to prune, shape (U,).

    Args:
        problem: A problem whose influence has sparse whitened rows.
        count: Number of samples to prune in all.
        seed: Seed of the search.
        sweeps: Number of times that every free sample is offered a flip.
        progress: Told the number of sweeps done, or None.
    """
    search, random = _Flips(problem, count, seed), np.random.default_rng(seed)
    search.start()
    for sweep in range(sweeps):
        if sweep % REFRESH == 0:
            search.refresh()
        temperature = HOTTEST * (COLDEST / HOTTEST) ** (sweep / max(1, sweeps - 1))
        search.sweep(random.permutation(problem.free.numpy()), temperature)
        if progress:
            progress(sweep + 1, sweeps)
    search.repair()
    return search.shorter()


class _Flips:
    """The set at hand, over all n samples, and the sum of its rows."""

    def __init__(self, problem: Problem, count: int, seed: int) -> None:
        rows, mean = problem.influence.whitened, problem.influence.whitened_mean
        assert isinstance(rows, SparseRows)
        self.rows, self.problem, self.count = rows, problem, count
        self.squares = rows.squares()
        self.unit = float(self.squares.mean()) or 1.0
        self.mean = mean.numpy()
        n = len(rows)
        self.random_norm = math.sqrt(count * (n - count) / n * self.unit) or 1.0
        self.costs = np.zeros(n)
        self.costs[problem.free.numpy()] = problem.costs(count) * self.random_norm
        self.classes = np.zeros(n, dtype=np.int64)
        if problem.labels is not None:
            self.classes = problem.labels.numpy()
        self.spare = problem.spare(count)
        self.pruned = np.zeros(n, dtype=np.bool_)
        self.pruned[problem.forced.numpy()] = True
        self._random = np.array([seed], dtype=np.uint64)
        self._draw = np.random.default_rng(seed)

    @property
    def _arrays(self) -> tuple[Ints, Places, Places, Floats, Floats, NDArray[np.uint16], Floats]:
        rows = self.rows
        return (
            rows.starts, rows.places, rows.outputs, rows.values, rows.projected, rows.inputs, rows.base
        )  # fmt: skip

    @property
    def over(self) -> int:
        """By how many samples too many are pruned."""
        return int(self.pruned.sum()) - self.count

    def refresh(self) -> None:
        """Form the sum of the pruned rows, less ``count`` means, and its square.

        A flip adds a row without its mean, so the sum is right once ``count`` samples are pruned.
        """
        chosen = torch.from_numpy(np.flatnonzero(self.pruned))
        total = self.rows.sum(chosen).numpy() - self.count * self.mean
        self.square, self.total = self.rows.square(total), total.astype(np.float32)

    def start(self) -> None:
        """Decide on every free sample once, those with the longest rows first."""
        free = self.problem.free.numpy()
        if not len(free):
            return
        share = (self.count - len(self.problem.forced)) / len(free)
        self.refresh()
        self.total += (share * self.rows.sum(self.problem.free)).numpy().astype(np.float32)
        order = free[np.argsort(-self.squares[free], kind="stable")]
        _decide(
            *self._arrays, self.squares, self.classes, self.spare, self.pruned, order, self.total,
            share, PENALTY * HOTTEST * self.unit,
        )  # fmt: skip

    def sweep(self, order: Ints, temperature: float) -> None:
        """Offer a flip to every sample of the order; the temperature is that of squared norms."""
        norm = math.sqrt(max(self.square, 1e-12 * self.unit))
        self.square = _sweep(
            *self._arrays, self.squares, self.costs, self.classes, self.spare, self.pruned, order,
            self.total, self.square, self.over, PENALTY * temperature * self.unit,
            temperature * self.unit / (2 * norm), self._random,
        )  # fmt: skip

    def repair(self) -> None:
        """Flip one sample after the other until as many are pruned as were asked for.

        Each time the one of some that leaves least is flipped. All at once would not do: those that
        leave least alone point the same way. The floors of classes may end it early.
        """
        self.refresh()
        entries = max(1.0, len(self.rows.values) / len(self.rows))
        some = max(LEAST_OFFERED, round(OFFERED * min(1.0, MOST_ENTRIES / entries)))
        while self.over:
            surplus = self.over > 0
            able = self._able(surplus)
            if not len(able):
                return
            offered = self._draw.choice(able, min(some, len(able)), replace=False)
            change = _changes(*self._arrays, self.squares, self.pruned, offered, self.total)
            norm = math.sqrt(max(self.square, 1e-12 * self.unit))
            sign = -1.0 if surplus else 1.0
            best = int((change / (2 * norm) + sign * self.costs[offered]).argmin())
            self._flip(int(offered[best]), float(change[best]))

    def _able(self, surplus: bool) -> Ints:
        """Free samples that may be kept after all, if too many are pruned, or else pruned."""
        free = self.problem.free.numpy()
        able: Ints = free[self.pruned[free] == surplus]
        if len(self.spare) and not surplus:
            able = able[self.spare[self.classes[able]] > 0]
        return able

    def _flip(self, i: int, change: float) -> None:
        """Prune a sample, or keep it after all, which changes the square by so much."""
        sign = -1 if self.pruned[i] else 1
        self.pruned[i] = sign > 0
        if len(self.spare):
            self.spare[self.classes[i]] -= sign
        self.square = max(0.0, self.square + change)
        _put(*self._arrays[:-1], i, float(sign), self.total)

    def shorter(self) -> Bools:
        """Which free samples to prune: those at hand, or those with the shortest rows if that is less.

        Few samples that are pruned out of many are better chosen one by one than balanced.
        """
        free = self.problem.free.numpy()
        mine: Bools = self.pruned[free].copy()
        energy = self._energy()
        order = np.argsort(self.squares[free], kind="stable")
        self.pruned[free] = self.problem.fill(order, self.count)[0]
        return self.pruned[free] if self._energy() < energy and not self.over else mine

    def _energy(self) -> float:
        """Norm of the sum of the pruned rows, and their costs."""
        self.refresh()
        return math.sqrt(self.square) + float(self.costs[self.pruned].sum())


@partial(compiled, inline="always", fastmath=True)
def _slope(
    starts: Ints, places: Places, outputs: Places, values: Floats, projected: Floats,
    inputs: NDArray[np.uint16], base: Floats, i: int, total: Floats,
) -> float:  # fmt: skip
    """Inner product of a sample's row with the sum."""
    slope, width = 0.0, inputs.shape[1]
    for e in range(starts[i], starts[i + 1]):
        c, a, whole, covered = outputs[e], places[e], np.float32(0), np.float32(0)
        for d in range(width):
            whole += total[c, d] * half(inputs[a, d])
        for d in range(projected.shape[1]):
            covered += total[c, width + d] * projected[e, d]
        slope += values[e] * (base[c] * whole - covered)
    return slope


@partial(compiled, inline="always", fastmath=True)
def _put(
    starts: Ints, places: Places, outputs: Places, values: Floats, projected: Floats,
    inputs: NDArray[np.uint16], i: int, weight: float, total: Floats,
) -> None:  # fmt: skip
    """Add a sample's row, times a weight, to the sum."""
    width = inputs.shape[1]
    for e in range(starts[i], starts[i + 1]):
        c, a, value = outputs[e], places[e], np.float32(weight * values[e])
        for d in range(width):
            total[c, d] += value * half(inputs[a, d])
        for d in range(projected.shape[1]):
            total[c, width + d] += value * projected[e, d]


@partial(compiled, fastmath=True)
def _decide(
    starts: Ints, places: Places, outputs: Places, values: Floats, projected: Floats,
    inputs: NDArray[np.uint16], base: Floats, squares: Doubles, classes: Ints, spare: Ints,
    pruned: Bools, order: Ints, total: Floats, share: float, penalty: float,
) -> None:  # fmt: skip
    """Prune or keep each sample, whichever leaves less; the sum counts ``share`` of the undecided."""
    over = 0.0
    for i in order:
        slope = _slope(starts, places, outputs, values, projected, inputs, base, i, total)
        change = 2 * slope + (1 - 2 * share) * squares[i]
        change += penalty * (2 * over + 1 - 2 * share)
        taken = change < 0
        if taken and len(spare):
            taken = spare[classes[i]] > 0
            spare[classes[i]] -= 1 if taken else 0
        pruned[i] = taken
        weight = (1.0 if taken else 0.0) - share
        over += weight
        _put(starts, places, outputs, values, projected, inputs, i, weight, total)


@partial(compiled, fastmath=True)
def _sweep(
    starts: Ints, places: Places, outputs: Places, values: Floats, projected: Floats,
    inputs: NDArray[np.uint16], base: Floats, squares: Doubles, costs: Doubles, classes: Ints,
    spare: Ints, pruned: Bools, order: Ints, total: Floats, square: float, over: int,
    penalty: float, temperature: float, random_state: NDArray[np.uint64],
) -> float:  # fmt: skip
    """Offer a flip to every sample of the order (Metropolis); returns the squared norm of the sum."""
    for i in order:
        sign = -1.0 if pruned[i] else 1.0
        if sign > 0 and len(spare) and spare[classes[i]] <= 0:
            continue
        slope = _slope(starts, places, outputs, values, projected, inputs, base, i, total)
        change = 2.0 * sign * slope + squares[i]
        held = penalty * (2.0 * sign * over + 1.0)
        energy = rise(square + penalty * over * over, change + held) + sign * costs[i]
        if energy > 0.0:
            luck = (np.float64(next_random(random_state) >> np.uint64(11)) + 1.0) / 2.0**53
            if energy > -temperature * math.log(luck):
                continue
        pruned[i] = sign > 0
        square = max(0.0, square + change)
        over += 1 if sign > 0 else -1
        if len(spare):
            spare[classes[i]] -= 1 if sign > 0 else -1
        _put(starts, places, outputs, values, projected, inputs, i, sign, total)
    return square


@partial(compiled, fastmath=True)
def _changes(
    starts: Ints, places: Places, outputs: Places, values: Floats, projected: Floats,
    inputs: NDArray[np.uint16], base: Floats, squares: Doubles, pruned: Bools, order: Ints,
    total: Floats,
) -> Doubles:  # fmt: skip
    """How a flip of each sample of the order would change the squared norm of the sum."""
    found = np.empty(len(order))
    for k, i in enumerate(order):
        sign = -1.0 if pruned[i] else 1.0
        slope = _slope(starts, places, outputs, values, projected, inputs, base, i, total)
        found[k] = 2.0 * sign * slope + squares[i]
    return found
