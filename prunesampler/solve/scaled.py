"""A problem of one count, scaled for annealing: its rows, costs, temperatures and reach.

At temperature T the norm of the state settles near R * T, for R dimensions: its density grows like
the (R - 1)-th power of the norm and its probability falls like exp(-norm / T). A swap that changes
the state by a vector of norm u is then likely to be accepted only while u is not much larger than
sqrt(R) * T. So samples whose rows have norms above ``REACH`` times that are not swapped: as the
temperature falls, annealing narrows to rows of ever smaller norm.
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
"""Last temperature as a share of the first; at the first a random set is in equilibrium."""
REACH = 10.0
SMALL = 1000
"""Up to this number of free samples, all stay within reach, and the best set met is returned, since
with few samples annealing may find the best set and leave it again."""


@dataclass(frozen=True)
class Scaled:
    """A problem of one count, in units of the mean norm of its rows.

    Args:
        problem: The problem before scaling.
        count: Number of samples to prune.
        rows: Whitened rows of the free samples, float32.
        fixed: Sum of the rows of the samples that must be pruned, less ``count`` times the mean
            row, shape (K, D), float64.
        norms: Norms of the centred rows, shape (U,), float64.
        costs: Cost of pruning each free sample, in the unit of the energy, shape (U,).
        hottest: The first temperature.

    Examples:
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
        assert isinstance(whitened, RankOne)  # sparse rows are searched by flips
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

        Only these are computed: for a million samples all would take half a gibibyte.

        Args:
            steps: Number of steps in all.
            first: Step to begin with.
            last: Step to end before, by default the end.
        """
        last = steps if last is None else last
        hottest, coldest, end = self.hottest, self.hottest * COLDEST, max(2, steps) - 1
        top, bottom = np.log10(hottest), np.log10(coldest)
        # Equal to np.geomspace to the last bit: other temperatures would give another set.
        exponents = np.arange(first, last) * ((bottom - top) / end) + top
        found: NDArray[np.float64] = np.power(10.0, exponents)
        found[: max(0, 1 - first)] = hottest
        found[max(0, end - first) :] = coldest
        return found

    def within_reach(self, pruned: Bools, temperature: float) -> tuple[Ints, Ints]:
        """Pruned and kept samples whose rows have norms small enough to swap at this temperature.

        In small problems all are, and also with a cost, which may be worth a large norm.
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
    """Norm of every row less the mean, shape (U,), float64, from its expanded square."""
    squares = rows.norms().square() - 2 * rows.inner(mean) + mean.square().sum()
    return squares.clamp(min=0).sqrt().cpu()


def _random_norm(norms: Tensor, m: int, n: int) -> float:
    """Root mean square norm of the sum of m rows out of n that are drawn at random."""
    return math.sqrt(m * (n - m) / max(1, n - 1) * float(norms.square().sum()) / n)
