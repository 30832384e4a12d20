"""The guarantee problem: the largest set whose shift stays within epsilon."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from prunesampler.problem import Problem

Progress = Callable[[int, int], None]
"""Called now and then with the steps done and the steps in all."""


class Solution(NamedTuple):
    """Indices to prune, int64 and ascending, and the float64 norm of their first-order shift."""

    pruned: Tensor
    norm: float


Minimise = Callable[[int, Progress | None], Tensor]
"""From a size to the indices of a set of that size with low energy, ascending."""


def largest_within(
    problem: Problem, most: int, epsilon: float, minimise: Minimise, progress: Progress | None
) -> Solution:
    """The largest set found whose shift stays within epsilon, maybe empty.

    The size is bisected, then single units are added as long as one fits: the set returned is
    feasible in float64, and no further unit can be added to it. The smallest shift mostly grows
    with the size, not always, so a larger set may be missed.

    Args:
        problem: influence and limits.
        most: samples that may be pruned at most.
        epsilon: bound on the norm of the shift, in the influence's metric.
        minimise: see :data:`Minimise`.
        progress: see :data:`Progress`.

    Raises:
        ValueError: when the samples that must be pruned break epsilon by themselves.
    """
    influence, forced = problem.influence, problem.forced
    best = Solution(forced, influence.shift_norm(forced) if len(forced) else 0.0)
    low, high, size = len(forced), most, most
    rounds, done = max(1, most - low).bit_length() + 1, 0
    while low < high:
        pruned = minimise(size, None)
        norm = influence.shift_norm(pruned) if len(pruned) else 0.0
        if norm <= epsilon and len(pruned) > len(best.pruned):
            low, best = size, Solution(pruned, norm)
        else:
            high = size - 1
        size = (low + high + 1) // 2
        done += 1
        if progress:
            progress(min(done, rounds - 1), rounds)
    if best.norm > epsilon:
        raise ValueError(
            f"the {len(forced)} samples in prune= shift the parameters by {best.norm:.4g}, more than "
            f"epsilon={epsilon:.4g}; raise epsilon to that, or prune fewer of them"
        )
    best = _grow(problem, best, most, epsilon)
    if progress:
        progress(rounds, rounds)
    return best


def _grow(problem: Problem, found: Solution, most: int, epsilon: float) -> Solution:
    """Add single units, the one with the smallest shift first, while one stays within epsilon."""
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
    sums = list(problem.gradient_sums())
    return torch.cat(
        [influence.squares(torch.stack(sums[k : k + 256])) for k in range(0, len(sums), 256)]
    )
