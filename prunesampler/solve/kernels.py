"""The compiled inner loops of the searches, on plain arrays.

The state is the sum ``V`` of the pruned rows, shape (K, D). Swapping the pruned sample i for the
kept sample j changes ``V`` by ``u_j - u_i`` with ``u = left ⊗ right``. A swap that raises the energy,
the norm of ``V`` plus the costs of what is pruned, by x is accepted with probability
``exp(-x / temperature)`` (Metropolis).

Floors per class are kept by ``spare``: how many more samples of each class may be pruned, (classes,),
or (0,) when there are no floors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


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
def fill(order: Ints, classes: Ints, spare: Ints, count: int) -> Bools:
    """Prune samples in this order, wherever a floor allows it, until ``count`` are pruned.

    Args:
        order: samples, the first to go first, (U,).
        classes: class of each sample, (U,).
        spare: see the module; changed in place.
        count: samples to prune.

    Returns:
        Which samples are pruned, (U,).

    Example:
        >>> classes, spare = np.array([0, 0, 1]), np.array([1, 1])
        >>> fill(np.array([1, 0, 2]), classes, spare, 2).tolist()
        [False, True, True]
    """
    taken = np.zeros(len(classes), dtype=np.bool_)
    for u in order:
        if count <= 0:
            break
        if len(spare):
            if spare[classes[u]] <= 0:
                continue
            spare[classes[u]] -= 1
        taken[u] = True
        count -= 1
    return taken


@partial(compiled, fastmath=True)
def metropolis_moves(
    left: Floats,
    right: Floats,
    squares: Doubles,
    costs: Doubles,
    classes: Ints,
    spare: Ints,
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
        costs: cost of pruning each sample, in the unit of the energy, (U,).
        classes: class of each sample, (U,).
        spare: see the module; changed in place.
        inside: pruned samples that may be swapped; changed in place.
        outside: kept samples that may be swapped, pool by pool; changed in place.
        pool: a sample is only swapped for one of its own pool, (U,).
        pool_start: where each pool begins in ``outside``, (pools + 1,).
        state: (K, D), the sum of the pruned rows; changed in place.
        square: squared norm of the state.
        temperatures: one per proposal.
        random_state: of :func:`next_random`; changed in place.
        best: ``inside`` at the lowest energy met so far, or (0,) not to keep it.
        best_energy: that energy, costs counted from the beginning of this call's ``inside``.
    """
    spent = 0.0
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
        if len(spare) and classes[i] != classes[j] and spare[classes[j]] <= 0:
            continue
        slope, overlap = slope_and_overlap(left, right, state, i, j)
        change = 2.0 * (slope - overlap) + squares[i] + squares[j]
        cost = costs[j] - costs[i]
        if rise(square, change) + cost > -temperature * math.log(luck):
            continue
        inside[x], outside[y] = j, i
        if len(spare):
            spare[classes[i]] += 1
            spare[classes[j]] -= 1
        spent += cost
        # Summed afresh: adding up changes would lose a norm near zero in rounding.
        square = 0.0
        for k in range(left.shape[1]):
            part = np.float32(0)
            for d in range(right.shape[1]):
                state[k, d] += left[j, k] * right[j, d] - left[i, k] * right[i, d]
                part += state[k, d] * state[k, d]
            square += float(part)
        if len(best) and math.sqrt(square) + spent < best_energy:
            best_energy = math.sqrt(square) + spent
            best[:] = inside
    return best_energy
