"""What annealing and exchange share: rows of units, start, temperatures, and how far swaps reach.

At temperature T the norm of the state settles near R * T, for R dimensions: its density grows like
the (R - 1)-th power of the norm and its probability falls like exp(-norm / T). A swap that changes
the state by a vector of length u is then likely to be accepted only while u is not much longer than
sqrt(R) * T. So units with rows longer than ``REACH`` times that are left as they are: the search
narrows to ever shorter rows as it cools.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.influence.rows import RankOne, matrices_at_a_time
from prunesampler.solve.kernels import Limits, Units
from prunesampler.solve.problem import Bools, Ints, Problem

MOVES_PER_SAMPLE, MIN_MOVES = 50, 1_000_000
COLDEST = 1e-4
"""Last temperature as a share of the first, at which a random set is in equilibrium."""
REACH = 10.0
SMALL = 1000
"""Problems of up to so many units are searched whole to the end, and the best set met is returned:
few samples make rugged problems, where it is passed and left again."""
DENSE = 2**31
"""Numbers that sums over groups may take, written out."""


@dataclass(frozen=True)
class Search:
    """A problem of one size, in units of the mean row norm.

    Args:
        problem: what is searched.
        size: samples to prune.
        rows: of the free units, float32.
        fixed: sum of the rows of the samples that must be pruned, less the means that come with
            ``size`` samples, shape (K, D), float64.
        norms: of the centred rows, shape (U,), float64.
        units: sizes, costs and classes of the units.
        hottest: first temperature.
    """

    problem: Problem
    size: int
    rows: RankOne
    fixed: Tensor
    norms: Tensor
    units: Units
    hottest: float

    @classmethod
    def of(cls, problem: Problem, size: int, device: torch.device | str | None = None) -> Search:
        """Sum rows over groups, scale them and the costs."""
        search, mean = problem.influence.whitened, problem.influence.whitened_mean
        rows = _unit_rows(problem)
        centre = mean.new_zeros(rows.shape) if problem.grouped else mean
        squares = rows.norms().square() - 2 * rows.inner(centre) + centre.square().sum()
        norms = squares.clamp(min=0).sqrt().cpu()
        unit = (float(norms.mean()) if len(norms) else 0.0) or 1.0
        fixed = search.sum(problem.forced) - len(problem.forced) * mean
        if not problem.grouped:
            fixed = fixed - (size - len(problem.forced)) * mean
        rows, fixed = RankOne(rows.left / unit, rows.right), fixed.reshape(rows.shape) / unit
        if device is not None:
            rows = RankOne(rows.left.to(device), rows.right.to(device))
        m, n = size, len(problem.influence)
        random = math.sqrt(m * (n - m) / max(1, n - 1) * float((norms / unit).square().sum()) / n)
        units = problem.units(size)
        units = units._replace(costs=units.costs * random)
        hottest = min(1.0, random / math.prod(rows.shape)) or 1.0
        return cls(problem, size, rows, fixed, norms / unit, units, hottest)

    def start(self, seed: int) -> tuple[Bools, Limits]:
        """A random set within the limits."""
        return self.problem.random_start(self.size, seed)

    def state(self, pruned: Bools) -> Tensor:
        """Sum of the centred rows of all pruned samples, shape (K, D), float64."""
        chosen = torch.from_numpy(np.flatnonzero(pruned))
        return self.rows.sum(chosen) + self.fixed.to(self.rows.left.device)

    def temperatures(
        self, steps: int, first: int = 0, last: int | None = None
    ) -> NDArray[np.float64]:
        """Of the steps from ``first`` to before ``last``; one per step, falling geometrically.

        Only those asked for are laid out: for a million samples all would take half a gibibyte.

        Args:
            steps: of the whole search.
            first: step to begin with.
            last: step to end before; default: the end.
        """
        last = steps if last is None else last
        hottest, coldest, end = self.hottest, self.hottest * COLDEST, max(2, steps) - 1
        top, bottom = np.log10(hottest), np.log10(coldest)
        # As np.geomspace has them, to the last bit: another temperature would be another set.
        exponents = np.arange(first, last) * ((bottom - top) / end) + top
        found: NDArray[np.float64] = np.power(10.0, exponents)
        found[: max(0, 1 - first)] = hottest
        found[max(0, end - first) :] = coldest
        return found

    def within_reach(self, pruned: Bools, temperature: float) -> tuple[Ints, Ints]:
        """Pruned and kept units whose rows are short enough to be swapped at this temperature.

        All are where there is a cost, which long rows may be worth, and in small problems.
        """
        longest = REACH * math.sqrt(math.prod(self.rows.shape)) * temperature
        near = self.norms.numpy() <= longest
        if near.sum() < SMALL or self.problem.cost is not None:
            near = np.ones(len(near), dtype=bool)
            if len(near) > SMALL and self.problem.cost is None:
                near = self.norms.numpy() <= float(self.norms.kthvalue(SMALL).values)
        inside, outside = np.flatnonzero(near & pruned), np.flatnonzero(near & ~pruned)
        if len(inside) and len(outside):
            return inside, outside
        return np.flatnonzero(pruned), np.flatnonzero(~pruned)


def _unit_rows(problem: Problem) -> RankOne:
    """Rows of the free units: of the samples as they are, or dense centred sums over groups."""
    search, mean = problem.influence.whitened, problem.influence.whitened_mean
    if not problem.grouped:
        return search if len(problem) == len(search) else search[problem.members]
    width = math.prod(search.shape)
    if len(problem) * width > DENSE:
        raise ValueError(
            f"{len(problem)} groups of samples with {width} parameters are {len(problem) * width:.2g} "
            "numbers when summed, too many; use fewer samples, or a smaller layer"
        )
    sums = torch.zeros(len(problem), width)
    owner = problem.unit_of_members()
    at_a_time = matrices_at_a_time(search.shape)
    for first in range(0, len(problem.members), at_a_time):
        part = slice(first, first + at_a_time)
        flat = search[problem.members[part]].flat().cpu() - mean.flatten().float()
        sums.index_add_(0, owner[part], flat)
    return RankOne.from_vectors(sums)


def moves_for(moves: int | None, units: int) -> int:
    """Swaps to propose when nobody said how many.

    Raises:
        ValueError: for fewer than one.
    """
    if moves is not None and moves < 1:
        raise ValueError(f"moves must be at least 1, got {moves}")
    return max(MOVES_PER_SAMPLE * units, MIN_MOVES) if moves is None else moves
