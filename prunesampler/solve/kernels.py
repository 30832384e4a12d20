"""The compiled inner loops of the searches, on plain arrays.

What is pruned and kept are units: single samples, or groups of samples that go together. The state
is the sum ``V`` of the pruned rows, shape (K, D). Swapping the pruned unit i for the kept unit j
changes ``V`` by ``u_j - u_i`` with ``u = left ⊗ right``. A swap that raises the energy, the norm of
``V`` plus the costs of what is pruned, by x is accepted with probability ``exp(-x / temperature)``
(Metropolis).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Units(NamedTuple):
    """What a swap must know of U units, beside their rows.

    Args:
        sizes: samples of each unit, (U,).
        costs: linear cost of pruning each, in the unit of the energy, (U,).
        start: where each unit's classes begin in ``classes``, (U + 1,).
        classes: classes of the units' samples, each once per unit.
        counts: samples of that class in that unit.
    """

    sizes: Ints
    costs: Doubles
    start: Ints
    classes: Ints
    counts: Ints


class Limits(NamedTuple):
    """What a swap must respect, and where it stands; changed in place.

    Args:
        kept: kept samples of each class, (C,).
        floors: fewest kept samples of each class, (C,); (0,) when there are none.
        pruned: samples pruned by units, (1,).
        least: fewest of them that are near enough to the budget, (1,).
        most: most of them, (1,).
    """

    kept: Ints
    floors: Ints
    pruned: Ints
    least: Ints
    most: Ints


F = TypeVar("F", bound=Callable[..., object])


def compiled(
    function: F, *, inline: Literal["never", "always"] = "never", fastmath: bool = False
) -> F:
    """Compile a function, and keep the machine code on disk where there is a place to write."""
    done: Any
    try:
        done = numba.njit(cache=True, inline=inline, fastmath=fastmath, nogil=True)(function)
    except RuntimeError:  # numba found neither the package's folder nor a cache folder writable
        done = numba.njit(inline=inline, fastmath=fastmath, nogil=True)(function)
    return cast(F, done)


@compiled
def next_random(state: NDArray[np.uint64]) -> np.uint64:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); ``state`` has one element."""
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(z ^ (z >> np.uint64(31)))


@partial(compiled, inline="always", fastmath=True)
def slope_and_overlap(
    left: Floats, right: Floats, state: Floats, i: int, j: int
) -> tuple[float, float]:
    """Inner product of ``u_j - u_i`` with the state, and of ``u_i`` with ``u_j``; reads rows once."""
    slope, lefts, rights = np.float32(0), np.float32(0), np.float32(0)
    for k in range(left.shape[1]):
        at_i, at_j = np.float32(0), np.float32(0)
        for d in range(right.shape[1]):
            at_i += state[k, d] * right[i, d]
            at_j += state[k, d] * right[j, d]
            if k == 0:
                rights += right[i, d] * right[j, d]
        slope += left[j, k] * at_j - left[i, k] * at_i
        lefts += left[i, k] * left[j, k]
    return float(slope), float(lefts * rights)


@compiled
def rise(square: float, change: float) -> float:
    """How much the norm rises when its square, ``square``, changes by ``change``."""
    return math.sqrt(max(square + change, 0.0)) - math.sqrt(max(square, 0.0))


@compiled
def fill(order: Ints, units: Units, limits: Limits) -> Bools:
    """Prune units in this order wherever the limits allow it; exact greedy for single samples.

    Returns:
        Which units are pruned, (U,). The limits are brought up to date.
    """
    taken = np.zeros(len(units.sizes), dtype=np.bool_)
    for u in order:
        if limits.pruned[0] + units.sizes[u] > limits.most[0]:
            continue
        fits = True
        if len(limits.floors):
            for k in range(units.start[u], units.start[u + 1]):
                c = units.classes[k]
                fits = fits and limits.kept[c] - units.counts[k] >= limits.floors[c]
        if fits:
            taken[u] = True
            limits.pruned[0] += units.sizes[u]
            for k in range(units.start[u], units.start[u + 1]):
                limits.kept[units.classes[k]] -= units.counts[k]
    return taken


@compiled
def exchange_counts(i: int, j: int, units: Units, limits: Limits) -> None:
    """Note in the limits that i is kept and j pruned."""
    limits.pruned[0] += units.sizes[j] - units.sizes[i]
    for k in range(units.start[i], units.start[i + 1]):
        limits.kept[units.classes[k]] += units.counts[k]
    for k in range(units.start[j], units.start[j + 1]):
        limits.kept[units.classes[k]] -= units.counts[k]


@compiled
def allowed(i: int, j: int, units: Units, limits: Limits) -> bool:
    """Whether keeping i and pruning j stays within the limits, or comes nearer to them."""
    after = limits.pruned[0] + units.sizes[j] - units.sizes[i]
    if after > limits.most[0] or after < min(limits.least[0], limits.pruned[0]):
        return False
    if len(limits.floors) == 0:
        return True
    exchange_counts(i, j, units, limits)
    fits = True
    for k in range(units.start[j], units.start[j + 1]):
        c = units.classes[k]
        fits = fits and limits.kept[c] >= limits.floors[c]
    exchange_counts(j, i, units, limits)
    return fits


@partial(compiled, fastmath=True)
def metropolis_moves(
    left: Floats,
    right: Floats,
    squares: Doubles,
    units: Units,
    limits: Limits,
    inside: Ints,
    outside: Ints,
    pool: Ints,
    pool_start: Ints,
    state: Floats,
    square: float,
    temperatures: Doubles,
    random_state: NDArray[np.uint64],
    best: Ints,
    best_energy: float,
) -> float:
    """Propose one random swap per temperature; returns the lowest energy met.

    Args:
        left: (U, K).
        right: (U, D).
        squares: squared norms of the rows, (U,).
        units: sizes, costs and classes.
        limits: see :class:`Limits`; changed in place.
        inside: pruned units that may be swapped; changed in place.
        outside: kept units that may be swapped, pool by pool; changed in place.
        pool: a unit is only swapped for one of its own pool, (U,).
        pool_start: where each pool begins in ``outside``, (pools + 1,).
        state: (K, D), the sum of the pruned rows; changed in place.
        square: squared norm of the state.
        temperatures: one per proposal.
        random_state: of :func:`next_random`; changed in place.
        best: ``inside`` at the lowest energy met so far, or (0,) not to keep it.
        best_energy: that energy, costs counted from the beginning of this call's ``inside``.
    """
    costs = 0.0
    for temperature in temperatures:
        x = np.int64((next_random(random_state) >> np.uint64(32)) % np.uint64(len(inside)))
        i = inside[x]
        first = pool_start[pool[i]]
        choice = pool_start[pool[i] + 1] - first
        luck = (np.float64(next_random(random_state) >> np.uint64(11)) + 1.0) / 9007199254740992.0
        drawn = next_random(random_state) >> np.uint64(32)
        if choice == 0:
            continue
        y = first + np.int64(drawn % np.uint64(choice))
        j = outside[y]
        if not allowed(i, j, units, limits):
            continue
        slope, overlap = slope_and_overlap(left, right, state, i, j)
        change = 2.0 * (slope - overlap) + squares[i] + squares[j]
        cost = units.costs[j] - units.costs[i]
        if rise(square, change) + cost > -temperature * math.log(luck):
            continue
        inside[x], outside[y] = j, i
        exchange_counts(i, j, units, limits)
        costs += cost
        # Summed afresh: adding up changes would lose a norm near zero in rounding.
        square = 0.0
        for k in range(left.shape[1]):
            part = np.float32(0)
            for d in range(right.shape[1]):
                state[k, d] += left[j, k] * right[j, d] - left[i, k] * right[i, d]
                part += state[k, d] * state[k, d]
            square += float(part)
        if len(best) and math.sqrt(square) + costs < best_energy:
            best_energy = math.sqrt(square) + costs
            best[:] = inside
    return best_energy


@compiled
def metropolis_tile(
    gram: Floats,
    slopes: Doubles,
    square: float,
    tile: Ints,
    place: Ints,
    units: Units,
    limits: Limits,
    temperature: float,
    proposals: int,
    random_state: NDArray[np.uint64],
) -> None:
    """Propose random swaps within a tile of b pruned and b kept units, each a look-up.

    Args:
        gram: inner products of the tile's rows, (2b, 2b).
        slopes: their inner products with the state, (2b,); changed in place.
        square: squared norm of the state.
        tile: the units, the pruned ones first, (2b,).
        place: positions 0 to 2b - 1; afterwards the pruned ones first; changed in place.
        units: sizes, costs and classes.
        limits: see :class:`Limits`; changed in place.
        temperature: of all proposals.
        proposals: how many.
        random_state: of :func:`next_random`; changed in place.
    """
    half = np.uint64(len(tile) // 2)
    for _ in range(proposals):
        x = np.int64((next_random(random_state) >> np.uint64(32)) % half)
        y = np.int64(half + (next_random(random_state) >> np.uint64(32)) % half)
        luck = (np.float64(next_random(random_state) >> np.uint64(11)) + 1.0) / 9007199254740992.0
        i, j = place[x], place[y]
        change = 2.0 * (slopes[j] - slopes[i]) + gram[i, i] + gram[j, j] - 2.0 * gram[i, j]
        cost = units.costs[tile[j]] - units.costs[tile[i]]
        if rise(square, change) + cost > -temperature * math.log(luck):
            continue
        if not allowed(tile[i], tile[j], units, limits):
            continue
        place[x], place[y] = j, i
        exchange_counts(tile[i], tile[j], units, limits)
        square = max(square + change, 0.0)
        for k in range(len(slopes)):
            slopes[k] += gram[j, k] - gram[i, k]
