"""The guarantee problem: the largest set whose shift stays within epsilon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from prunesampler.base.progress import Progress
from prunesampler.influence.rows import matrices_at_a_time
from prunesampler.solve.problem import Problem


class Solution(NamedTuple):
    """Indices to prune, int64 and ascending, and the float64 norm of their first-order shift."""

    pruned: Tensor
    norm: float


class TooFew(ValueError):
    """No set within epsilon holds the samples that must be pruned, with so few others."""


Found = TypeVar("Found")

Minimise = Callable[[Problem, int, Progress | None], Tensor]
"""From a problem and a size to the indices of such a set with low energy, ascending."""

HALVINGS = 8
"""How often the sizes of sets that leave too little curvature are halved, at most."""
SCAN = 16
"""Sizes to try, evenly spaced, when bisection found nothing."""


def largest_within(
    problem: Problem, most: int, epsilon: float, minimise: Minimise, progress: Progress | None
) -> Solution:
    """The largest set found whose shift stays within epsilon, maybe empty.

    The size is bisected, then single units are added as long as one fits: the set returned is
    feasible in float64, and no further unit can be added to it. The smallest shift mostly grows
    with the size, not always, so a larger set may be missed; where bisection ends with nothing,
    sizes are scanned from the largest down. A cost is left out where it would break epsilon.

    Args:
        problem: influence and limits.
        most: samples that may be pruned at most.
        epsilon: bound on the norm of the shift, in the influence's metric.
        minimise: see :data:`Minimise`.
        progress: see :data:`Progress`.

    Raises:
        TooFew: when no set was found that holds the samples that must be pruned.
    """
    influence, forced = problem.influence, problem.forced
    best = Solution(forced, influence.shift_norm(forced) if len(forced) else 0.0)
    low, high, size = len(forced), most, most
    rounds, done = max(1, most - low).bit_length() + 1, 0
    while low < high:
        found = _within(problem, size, epsilon, minimise)
        if found is not None and len(found.pruned) > len(best.pruned):
            low, best = size, found
        else:
            high = size - 1
        size = (low + high + 1) // 2
        done += 1
        if progress:
            progress(min(done, rounds - 1), rounds)
    if len(best.pruned) == len(forced):
        span = most - len(forced)
        for size in sorted({most - k * span // SCAN for k in range(SCAN)} - {len(forced)})[::-1]:
            best = _within(problem, size, epsilon, minimise) or best
            if len(best.pruned) > len(forced):
                break
    if best.norm > epsilon:
        raise TooFew(
            f"no set was found that holds the {len(forced)} samples in prune= and shifts the "
            f"parameters by at most epsilon={epsilon:.4g}; alone they shift them by {best.norm:.4g}: "
            "raise epsilon to that, or prune fewer of them"
        )
    best = _grow(problem, best, most, epsilon)
    if progress:
        progress(rounds, rounds)
    return best


def largest_curved(
    refused: int, least: int, attempt: Callable[[int], Found | None]
) -> Found | None:
    """What the largest size gives whose kept samples curve enough, or None where none was found.

    The size is bisected: the answer is within 5 % of the largest, for at most eight attempts.
    It leans on curvature being lost with every sample that goes, which holds but for chance.

    Args:
        refused: size that leaves too little curvature.
        least: samples that must go; smaller sizes are not tried, nor this one.
        attempt: from the most samples that may go to what is found, or None where that leaves too
            little curvature. ``TooFew`` says that epsilon needs more of them.
    """
    low, high, best = least, refused, None
    for _ in range(HALVINGS):
        if high - low <= max(1, low // 20):
            break
        size = (low + high) // 2
        try:
            found = attempt(size)
        except TooFew:
            low = size
            continue
        low, high, best = (low, size, best) if found is None else (size, high, found)
    return best


def _within(problem: Problem, size: int, epsilon: float, minimise: Minimise) -> Solution | None:
    """A set of that size within epsilon, if one is found: with its costs, else without."""
    for attempt in (problem, replace(problem, cost=None))[: 1 if problem.cost is None else 2]:
        pruned = minimise(attempt, size, None)
        norm = problem.influence.shift_norm(pruned) if len(pruned) else 0.0
        if norm <= epsilon:
            return Solution(pruned, norm)
    return None


def _grow(problem: Problem, found: Solution, most: int, epsilon: float) -> Solution:
    """Add single units, the one with the smallest shift first, while one stays within epsilon."""
    if len(found.pruned) >= most:  # nothing fits: then no unit's own shift need be known
        return found
    n, influence, sizes = len(problem.influence), problem.influence, problem.sizes()
    squares = _unit_squares(problem)
    taken = torch.isin(problem.members[problem.start[:-1]], found.pruned)
    while True:
        fits = ~taken & _fitting(problem, found.pruned, most)
        gradient = influence.gradient_sum(found.pruned)
        after = squares + float(influence.squares(gradient[None]))
        after += 2 * problem.add_up(influence.products(gradient))
        norms = after.clamp(min=0).sqrt() / (n - len(found.pruned) - sizes)
        # The last digits may deceive at the bound: only the norm of the set itself decides.
        hopeful = (fits & (norms <= epsilon * (1 + 1e-6))).nonzero().flatten()
        for unit in hopeful[norms[hopeful].argsort()].tolist():
            members = problem.members[problem.start[unit] : problem.start[unit + 1]]
            pruned = torch.cat([found.pruned, members]).sort().values
            norm = influence.shift_norm(pruned)
            if norm <= epsilon:
                found, taken[unit] = Solution(pruned, norm), True
                break
        else:
            return found


def _fitting(problem: Problem, pruned: Tensor, most: int) -> Tensor:
    """Which free units the floors and the cap would still let go; bool, shape (U,)."""
    sizes = problem.sizes()
    fits = len(pruned) + sizes <= most
    after = len(pruned) + (int(sizes.min()) if len(sizes) else 0)
    floors = problem.budget.floors(problem.labels, min(after, len(problem.influence)))
    if floors is None or problem.labels is None:
        return fits
    units = problem.units(1)
    kept = torch.bincount(problem.labels, minlength=len(floors))
    kept -= torch.bincount(problem.labels[pruned], minlength=len(floors))
    classes = torch.from_numpy(units.classes)
    broken = kept[classes] - torch.from_numpy(units.counts) < floors[classes]
    owner = torch.repeat_interleave(
        torch.arange(len(problem)), torch.from_numpy(units.start).diff()
    )
    return fits.index_put((owner[broken],), torch.tensor(False))


def _unit_squares(problem: Problem) -> Tensor:
    """Squared norm, in the metric, of each free unit's summed ``H^-1 (g_i - gbar)``, shape (U,)."""
    influence = problem.influence
    if not problem.grouped:
        return influence.sample_squares()[problem.members]
    squares: list[Tensor] = []
    sums = problem.gradient_sums()
    while some := list(islice(sums, min(256, matrices_at_a_time(influence.gradients.shape)))):
        squares.append(influence.squares(torch.stack(some)))
    return torch.cat(squares)
