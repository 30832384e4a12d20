"""The compiled inner loops of simulated annealing, on plain arrays.

The state is the sum ``V`` of the pruned rows, shape (K, D), and its squared norm. Swapping the
pruned row i for the kept row j changes ``V`` by ``u_j - u_i`` with ``u = left ⊗ right``. A swap that
raises the norm by x is accepted with probability ``exp(-x / temperature)`` (Metropolis).
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


@partial(compiled, fastmath=True)
def metropolis_moves(
    left: Floats,
    right: Floats,
    squares: Doubles,
    order: Ints,
    size: int,
    state: Floats,
    square: float,
    labels: Ints,
    kept: Ints,
    floors: Ints,
    random_state: NDArray[np.uint64],
    temperatures: Doubles,
    best: Ints,
    best_square: float,
) -> float:
    """Propose one random swap per temperature; returns the smallest squared norm met.

    Args:
        left: (n, K).
        right: (n, D).
        squares: squared norms of the rows, (n,).
        order: all indices, the pruned ones first; changed in place.
        size: how many are pruned.
        state: (K, D), the sum of the pruned rows; changed in place.
        square: squared norm of the state.
        labels: class of each sample, (n,).
        kept: kept samples of each class; changed in place.
        floors: fewest kept samples of each class.
        random_state: of :func:`next_random`; changed in place.
        temperatures: one per proposal.
        best: the pruned set of smallest norm met so far, (size,), or (0,) not to keep it.
        best_square: its squared norm.
    """
    inside, outside = np.uint64(size), np.uint64(len(order) - size)
    for temperature in temperatures:
        place = np.int64((next_random(random_state) >> np.uint64(32)) % inside)
        other = size + np.int64((next_random(random_state) >> np.uint64(32)) % outside)
        luck = (np.float64(next_random(random_state) >> np.uint64(11)) + 1.0) / 9007199254740992.0
        i, j = order[place], order[other]
        if labels[i] != labels[j] and kept[labels[j]] <= floors[labels[j]]:
            continue
        slope, overlap = slope_and_overlap(left, right, state, i, j)
        change = 2.0 * (slope - overlap) + squares[i] + squares[j]
        if rise(square, change) > -temperature * math.log(luck):
            continue
        order[place], order[other] = j, i
        kept[labels[i]] += 1
        kept[labels[j]] -= 1
        # Summed afresh: adding up changes would lose a norm near zero in rounding.
        square = 0.0
        for k in range(left.shape[1]):
            part = np.float32(0)
            for d in range(right.shape[1]):
                state[k, d] += left[j, k] * right[j, d] - left[i, k] * right[i, d]
                part += state[k, d] * state[k, d]
            square += float(part)
        if len(best) and square < best_square:
            best_square = square
            best[:] = order[:size]
    return best_square


@compiled
def metropolis_batch(
    slopes: Doubles,
    swaps: Floats,
    square: float,
    out: Ints,
    into: Ints,
    kept: Ints,
    floors: Ints,
    temperatures: Doubles,
    luck: Doubles,
) -> NDArray[np.bool_]:
    """Accept or refuse swaps in turn, each seeing the ones accepted before it.

    Args:
        slopes: inner product of each swap's change with the state, (b,); changed in place.
        swaps: Gram matrix of the changes, (b, b).
        square: squared norm of the state.
        out: class of each sample that would be kept again, (b,).
        into: class of each sample that would be pruned, (b,).
        kept: kept samples of each class; changed in place.
        floors: fewest kept samples of each class.
        temperatures: (b,).
        luck: uniform random numbers, (b,).

    Returns:
        Which swaps to make, (b,).
    """
    accepted = np.zeros(len(slopes), dtype=np.bool_)
    for b in range(len(slopes)):
        if out[b] != into[b] and kept[into[b]] <= floors[into[b]]:
            continue
        change = 2.0 * slopes[b] + swaps[b, b]
        if rise(square, change) > -temperatures[b] * math.log(max(luck[b], 1e-300)):
            continue
        accepted[b] = True
        square = max(square + change, 0.0)
        kept[out[b]] += 1
        kept[into[b]] -= 1
        for other in range(b + 1, len(slopes)):
            slopes[other] += swaps[b, other]
    return accepted
