"""The compiled inner loops of the solvers, on plain arrays.

The state is the sum ``V`` of the pruned rows, shape (K, D). Swapping the pruned sample i for the
kept sample j changes ``V`` by ``u_j - u_i`` with ``u = left ⊗ right``. A swap that raises the energy,
the norm of ``V`` plus the costs of what is pruned, by x is accepted with probability
``exp(-x / temperature)`` (Metropolis).

``spare`` enforces the floors: how many more samples of each class may be pruned, shape (classes,), or
(0,) without floors.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from prunesampler.base.compiled import compiled, next_random

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@partial(compiled, inline="always", fastmath=True)
def slope_and_overlap(
    left: Floats, right: Floats, state: Floats, i: int, j: int
) -> tuple[float, float]:
    """Inner products of ``u_j - u_i`` with the state, and of ``u_i`` with ``u_j``, in one pass.

    Examples:
        >>> left, right = np.ones((2, 1), np.float32), np.array([[1], [3]], np.float32)
        >>> slope_and_overlap(left, right, np.array([[10]], np.float32), 0, 1)
        (20.0, 3.0)
    """
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
    """How much a norm rises when its square, now ``square``, changes by ``change``.

    Examples:
        >>> rise(9.0, 16.0)
        2.0
    """
    return math.sqrt(max(square + change, 0.0)) - math.sqrt(max(square, 0.0))


@compiled
def fill(order: Ints, classes: Ints, spare: Ints, count: int) -> Bools:
    """Prune samples in this order, wherever a floor allows it, until ``count`` are pruned.

    Args:
        order: Samples in the order in which to prune them, shape (U,).
        classes: Class of each sample, shape (U,).
        spare: How many more of each class may be pruned, as above; changed in place.
        count: Number of samples to prune.

    Returns:
        Which samples are pruned, shape (U,).

    Examples:
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
    """Propose one random swap per temperature, and return the lowest energy met.

    Args:
        left: Left factors of the rows, shape (U, K).
        right: Right factors of the rows, shape (U, D).
        squares: Squared norms of the rows, shape (U,).
        costs: Cost of pruning each sample, in the unit of the energy, shape (U,).
        classes: Class of each sample, shape (U,).
        spare: How many more of each class may be pruned, as above; changed in place.
        inside: Pruned samples that may be swapped; changed in place.
        outside: Kept samples that may be swapped, pool by pool; changed in place.
        pool: Pool of each sample, shape (U,); only samples of the same pool are swapped.
        pool_start: Where each pool begins in ``outside``, shape (pools + 1,).
        state: Sum of the pruned rows, shape (K, D); changed in place.
        square: Squared norm of the state.
        temperatures: One temperature per proposal.
        random_state: State of :func:`next_random`; changed in place.
        best: ``inside`` at the lowest energy met so far, or shape (0,) not to keep it.
        best_energy: That energy, with costs relative to those of ``inside`` at the call.

    Examples:
        >>> rows, none = np.array([[3], [-3], [1]], np.float32), np.zeros(0, np.int64)
        >>> inside, outside, state = np.array([0, 2]), np.array([1]), np.array([[4]], np.float32)
        >>> _ = metropolis_moves(
        ...     np.ones((3, 1), np.float32), rows, np.array([9.0, 9.0, 1.0]), np.zeros(3),
        ...     np.zeros(3, np.int64), none, inside, outside, np.zeros(3, np.int64), np.array([0, 1]),
        ...     state, 16.0, np.full(50, 1e-9), np.zeros(1, np.uint64), none, np.inf,
        ... )
        >>> sorted(inside.tolist()), state.item()
        ([0, 1], 0.0)
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
