"""A problem of one count, scaled for annealing: rows, start, temperatures, and how far swaps reach.

At temperature T the norm of the state settles near R * T, for R dimensions: its density grows like
the (R - 1)-th power of the norm and its probability falls like exp(-norm / T). A swap that changes
the state by a vector of length u is then likely to be accepted only while u is not much longer than
sqrt(R) * T. So samples with rows longer than ``REACH`` times that are left as they are: the search
narrows to ever shorter rows as it cools.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.influence.rows import RankOne
from prunesampler.solve.problem import Bools, Ints, Problem

COLDEST = 1e-4
"""Last temperature as a share of the first, at which a random set is in equilibrium."""
REACH = 10.0
SMALL = 1000
"""Problems of up to this many free samples are searched whole to the end, and the best set met is
returned: few samples make rugged problems, where the search finds the best set and leaves it again."""


@dataclass(frozen=True)
class Scaled:
    """A problem of one count, in units of the mean norm of its rows.

    Args:
        problem: what is searched.
        count: samples to prune.
        rows: whitened rows of the free samples, float32.
        fixed: sum of the rows of the samples that must be pruned, less the means that come with
            ``count`` samples, shape (K, D), float64.
        norms: norms of the centred rows, shape (U,), float64.
        costs: cost of pruning each free sample, in the unit of the energy, shape (U,).
        hottest: first temperature.

    Example:
        >>> from prunesampler import Budget, Influence
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> scaled = Scaled.of(Problem.of(influence, Budget(count=2)), 2)
        >>> float(scaled.norms.mean()), len(scaled.temperatures(10))
        (1.0, 10)
    """

    problem: Problem
    count: int
    rows: RankOne
    fixed: Tensor
    norms: Tensor
    costs: NDArray[np.float64]
    hottest: float

    @classmethod
    def of(cls, problem: Problem, count: int) -> Scaled:
        """Scale the rows and the costs of a problem."""
        whitened, mean = problem.influence.whitened, problem.influence.whitened_mean
        everyone = len(problem) == len(whitened)
        rows = whitened if everyone else whitened[problem.free]
        norms = _centred_norms(rows, mean)
        unit = (float(norms.mean()) if len(norms) else 0.0) or 1.0
        forced = len(problem.forced)
        fixed = whitened.sum(problem.forced) - forced * mean - (count - forced) * mean
        rows = RankOne((rows.left / unit).cpu(), rows.right.cpu())
        random = _random_norm(norms / unit, count, len(problem.influence))
        return cls(
            problem=problem,
            count=count,
            rows=rows,
            fixed=(fixed.reshape(rows.shape) / unit).cpu(),
            norms=norms / unit,
            costs=problem.costs(count) * random,
            hottest=min(1.0, random / math.prod(rows.shape)) or 1.0,
        )

    def state(self, pruned: Bools) -> Tensor:
        """Sum of the centred rows of all pruned samples, shape (K, D), float64."""
        return self.rows.sum(torch.from_numpy(np.flatnonzero(pruned))) + self.fixed

    def temperatures(
        self, steps: int, first: int = 0, last: int | None = None
    ) -> NDArray[np.float64]:
        """Temperatures of the steps from ``first`` to before ``last``, falling geometrically.

        Only those asked for are laid out: for a million samples all would take half a gibibyte.

        Args:
            steps: steps of the whole search.
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
        """Pruned and kept samples whose rows are short enough to be swapped at this temperature.

        All of them are where there is a cost, which long rows may be worth, and in small problems.
        """
        longest = REACH * math.sqrt(math.prod(self.rows.shape)) * temperature
        near = self.norms.numpy() <= longest
        if self.problem.cost is not None or len(near) <= SMALL:
            near = np.ones(len(near), dtype=bool)
        elif near.sum() < SMALL:
            near = self.norms.numpy() <= float(self.norms.kthvalue(SMALL).values)
        inside, outside = np.flatnonzero(near & pruned), np.flatnonzero(near & ~pruned)
        if len(inside) and len(outside):
            return inside, outside
        return np.flatnonzero(pruned), np.flatnonzero(~pruned)


def _centred_norms(rows: RankOne, mean: Tensor) -> Tensor:
    """Norm of every row less the mean, shape (U,), float64, multiplied out."""
    squares = rows.norms().square() - 2 * rows.inner(mean) + mean.square().sum()
    return squares.clamp(min=0).sqrt().cpu()


def _random_norm(norms: Tensor, m: int, n: int) -> float:
    """Root mean square norm of the sum of m rows out of n that are drawn at random."""
    return math.sqrt(m * (n - m) / max(1, n - 1) * float(norms.square().sum()) / n)
