"""Solvers of the selection problem: which samples to prune, as a group.

Problem B (``fraction``, ``count``): of all sets of m samples choose one of smallest shift.
Problem A (``epsilon``): of all sets with ``||shift|| <= epsilon`` choose one of most samples.
Both are from Yang et al., ICLR 2023, section 3.2; both are combinatorial, so `anneal` and
`exchange` find good sets, and only `exhaustive` finds the best.

A solver is a function ``(influence, budget, *, labels, seed, progress) -> Solution``. It uses no
global random numbers, and the same arguments give the same set on the same hardware. Set its other
options with ``functools.partial``. The search runs in the whitened float32 coordinates of the
influence; the norm in the solution is computed afresh, in float64 and in the units of the
parameters, from the set that is returned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from prunesampler.influence import Influence
from prunesampler.selection import Budget

Progress = Callable[[int, int], None]
"""Called now and then with the steps done and the steps in all."""


class Solution(NamedTuple):
    """Indices to prune, int64 and ascending, and the float64 norm of their first-order shift."""

    pruned: Tensor
    norm: float


Minimise = Callable[[int, Progress | None], Tensor]
"""From a size to the indices of a set of that size with a small shift, ascending."""


class Solver(Protocol):
    """What the pruner calls."""

    def __call__(
        self,
        influence: Influence,
        budget: Budget,
        *,
        labels: Tensor | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> Solution:
        """Choose the samples to prune."""


def exhaustive(
    influence: Influence,
    budget: Budget,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Solution:
    """Try every set and return the best, in the units of the parameters. For tests: n <= 24.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        seed: unused, as every solver takes one.
        progress: see :data:`Progress`.

    Raises:
        ValueError: when n is above 24, or the budget cannot be met.
    """
    del seed
    n = len(influence)
    if n > 24:
        raise ValueError(f"exhaustive search takes at most 24 samples, got {n}; use anneal")
    single = torch.stack([influence.gradient_sum(torch.tensor([i])) for i in range(n)])
    vectors = torch.stack([influence.factor.solve(g).flatten() for g in single])
    gram = vectors @ vectors.T
    floors = budget.floors(labels)

    def minimise(size: int, progress: Progress | None) -> Tensor:
        sets = torch.tensor(list(itertools.combinations(range(n), size)))
        masks = torch.zeros(len(sets), n, dtype=torch.float64).scatter_(1, sets, 1.0)
        values = ((masks @ gram) * masks).sum(1)
        if floors is not None and labels is not None:
            classes = torch.nn.functional.one_hot(labels, len(floors)).double()
            values[(((1 - masks) @ classes) < floors).any(1)] = math.inf
        if progress:
            progress(1, 1)
        return sets[values.argmin()]

    return solve_by_size(influence, budget, labels, minimise, progress, every_size)


def solve_by_size(
    influence: Influence,
    budget: Budget,
    labels: Tensor | None,
    minimise: Minimise,
    progress: Progress | None,
    largest: Largest | None = None,
) -> Solution:
    """Solve either problem with a function that finds a set of a given size with a small shift.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: classes, int64, shape (n,), for the budget's floors.
        minimise: see :data:`Minimise`.
        progress: see :data:`Progress`.
        largest: how to find the largest size within epsilon; default bisection.

    Raises:
        ValueError: when the floors leave too few samples to prune.
    """
    size = budget.size(len(influence))
    floors = budget.floors(labels)
    free = len(influence) - (0 if floors is None else int(floors.sum()))
    if budget.epsilon is None:
        if size > free:
            raise ValueError(
                f"the budget prunes {size} of {len(influence)} samples, but "
                f"min_per_class={budget.min_per_class} lets at most {free} go; lower one of them"
            )
        pruned = minimise(size, progress)
        return Solution(pruned, influence.shift_norm(pruned))
    find = bisect_size if largest is None else largest
    return find(influence, min(size, free), budget.epsilon, minimise, progress)


def bisect_size(
    influence: Influence,
    cap: int,
    epsilon: float,
    minimise: Minimise,
    progress: Progress | None,
) -> Solution:
    """Bisect the size: the largest set found whose shift stays within epsilon, maybe empty.

    The smallest shift mostly grows with the size, not always; a larger set may be missed.
    """
    best = Solution(torch.zeros(0, dtype=torch.int64), 0.0)
    low, high, size = 0, cap, cap
    rounds, done = cap.bit_length() + 1, 0
    while low < high:
        pruned = minimise(size, None)
        norm = influence.shift_norm(pruned)
        if norm <= epsilon:
            low, best = size, Solution(pruned, norm)
        else:
            high = size - 1
        size = (low + high + 1) // 2
        done += 1
        if progress:
            progress(min(done, rounds), rounds)
    if progress:
        progress(rounds, rounds)
    return best


def every_size(
    influence: Influence,
    cap: int,
    epsilon: float,
    minimise: Minimise,
    progress: Progress | None,
) -> Solution:
    """Try every size from the largest down: exact if ``minimise`` is."""
    for size in range(cap, 0, -1):
        pruned = minimise(size, progress)
        norm = influence.shift_norm(pruned)
        if norm <= epsilon:
            return Solution(pruned, norm)
    return Solution(torch.zeros(0, dtype=torch.int64), 0.0)


Largest = Callable[[Influence, int, float, Minimise, Progress | None], Solution]
"""How to find the largest size within epsilon: `bisect_size` or `every_size`."""
