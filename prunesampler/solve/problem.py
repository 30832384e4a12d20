"""The selection problem, with everything that a set must respect, as the solvers see it.

The energy of a set S of m samples is the norm of its shift, as a share of that of a random set of
the same size, plus the mean cost of its samples. Without costs the first part is all there is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.checks import checked_cost, checked_labels
from prunesampler.influence.influence import Influence
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.kernels import fill

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Solution(NamedTuple):
    """Indices to prune, int64 and ascending, and the float64 norm of their first-order shift.

    Examples:
        >>> Solution(torch.tensor([1, 3]), 0.25).norm
        0.25
    """

    pruned: Tensor
    norm: float


@dataclass(frozen=True, eq=False)
class Problem:
    """Which samples may be pruned, and within which limits.

    Samples that must be kept or pruned are settled here; a solver decides about the free ones.

    Args:
        influence: Influence of n samples.
        budget: How much to prune.
        labels: Class of every sample, int64, shape (n,), or None.
        cost: Cost of pruning each sample, float64, shape (n,), or None.
        free: Samples that may be kept or pruned, int64, shape (U,), ascending.
        forced: Samples that must be pruned, int64, ascending.
        held: Samples that must stay, int64, ascending.

    Examples:
        >>> import torch
        >>> influence = Influence.from_vectors(torch.randn(10, 3))
        >>> problem = Problem.of(influence, Budget(fraction=0.4), None, Constraints(keep=[0, 1]))
        >>> len(problem), problem.count()
        (8, 4)
    """

    influence: Influence
    budget: Budget
    labels: Tensor | None
    cost: Tensor | None
    free: Tensor
    forced: Tensor
    held: Tensor

    @classmethod
    def of(
        cls,
        influence: Influence,
        budget: Budget,
        labels: Tensor | None = None,
        constraints: Constraints | None = None,
        cost: Tensor | None = None,
    ) -> Problem:
        """Settle which samples must stay or go.

        Raises:
            ValueError: If constraints contradict each other, a label is below zero, or a cost is
                not finite.
        """
        n = len(influence)
        keep, prune = (constraints or Constraints()).indices(n)
        both = keep[torch.isin(keep, prune)]
        if len(both):
            raise ValueError(
                f"sample {int(both[0])} must be kept and must be pruned: keep= and prune= contradict "
                "each other; take it out of one of them"
            )
        settled = torch.zeros(n, dtype=torch.bool)
        settled[keep] = settled[prune] = True
        return cls(
            influence=influence,
            budget=budget,
            labels=None if labels is None else checked_labels(labels, n),
            cost=None if cost is None else checked_cost(cost, n),
            free=(~settled).nonzero().flatten(),
            forced=prune,
            held=keep,
        )

    def __len__(self) -> int:
        """Number of free samples U."""
        return len(self.free)

    def solution(self, pruned: Tensor) -> Solution:
        """A set with the norm of its shift, which is zero for the empty set."""
        return Solution(pruned, self.influence.shift_norm(pruned) if len(pruned) else 0.0)

    def samples(self, pruned: Bools) -> Tensor:
        """All samples to prune if these of the free ones are pruned, int64, ascending."""
        return torch.cat([self.forced, self.free[torch.from_numpy(pruned)]]).sort().values

    def classes(self) -> Ints:
        """Class of each free sample, shape (U,); zero where classes are unknown."""
        if self.labels is None:
            return np.zeros(len(self), dtype=np.int64)
        return self.labels[self.free].numpy()

    def pools(self) -> Ints:
        """Class of each free sample if every class has a quota, else zero, shape (U,).

        Quotas forbid swaps between classes, so these need not be proposed.
        """
        return self.classes() if self.budget.shares else np.zeros(len(self), dtype=np.int64)

    def costs(self, count: int) -> NDArray[np.float64]:
        """Share of each free sample in the mean cost of ``count`` pruned ones, shape (U,)."""
        if self.cost is None:
            return np.zeros(len(self))
        return self.cost[self.free].numpy() / count

    def spare(self, count: int | None = None) -> Ints:
        """How many free samples of each class may be pruned, shape (classes,), or (0,) without floors.

        A class is negative if the samples that must be pruned break its floor.

        Args:
            count: Number of samples to prune in all; quotas depend on it.
        """
        floors = self.budget.floors(self.labels, count)
        if floors is None or self.labels is None:
            return np.zeros(0, dtype=np.int64)
        stay = torch.cat([self.free, self.held])
        spare: Ints = (torch.bincount(self.labels[stay], minlength=len(floors)) - floors).numpy()
        return spare

    def fill(self, order: Ints, count: int) -> tuple[Bools, Ints]:
        """Prune free samples in this order, wherever a floor allows it, up to ``count`` in all.

        Returns:
            Which free samples are pruned, shape (U,), and how many more of each class may go.
        """
        spare = self.spare(count)
        return fill(order, self.classes(), spare, count - len(self.forced)), spare

    def random_start(self, count: int, seed: int) -> tuple[Bools, Ints]:
        """A random set within the limits; see :meth:`fill`."""
        return self.fill(np.random.default_rng(seed).permutation(len(self)), count)

    def most(self, count: int | None = None) -> int:
        """Largest number of samples that may be pruned; quotas depend on the ``count`` asked for.

        Raises:
            ValueError: If the samples that must be pruned break a floor.
        """
        spare = self.spare(count)
        if not len(spare):
            return len(self.forced) + len(self)
        if (spare < 0).any():
            raise ValueError(self._broken_floor(int(np.flatnonzero(spare < 0)[0]), spare))
        free = np.bincount(self.classes(), minlength=len(spare))
        return len(self.forced) + int(np.minimum(free, spare).sum())

    def count(self) -> int:
        """Number of samples to prune; with epsilon, the largest that is allowed.

        Raises:
            ValueError: If the budget contradicts floors or constraints.
        """
        n, budget, least = len(self.influence), self.budget, len(self.forced)
        asked = budget.count_of(n)
        if budget.epsilon is not None:
            most = self.most()
            if least > asked:
                raise ValueError(
                    f"prune= names {least} samples, more than the {asked} of {n} that max_fraction="
                    f"{budget.max_fraction} allows; prune fewer or raise it"
                )
            return min(asked, most)
        most = min(self.most(asked), n - 1)
        if not least <= asked <= most:
            raise ValueError(self._out_of_range(asked, most))
        return asked

    def _out_of_range(self, asked: int, most: int) -> str:
        """Why the number asked for cannot be pruned, and the nearest budget that can be met."""
        n, least = len(self.influence), len(self.forced)
        reasons = []
        if asked < least:
            reasons.append(f"prune= names {least} that must go")
        elif len(self.held):
            reasons.append(f"keep= names {len(self.held)} that must stay")
        floors = None if asked < least else self.budget.floors(self.labels, asked)
        if floors is not None:
            classes = int((floors > 0).sum())
            reasons.append(f"{self._floors()} keeps {int(floors.sum())} in {classes} classes")
        limit = "" if asked < least else f", which lets at most {most} go"
        nearest = least if asked < least else most
        ways = ["lower min_per_class (0 is no floor)"] if floors is not None else []
        ways += ["name fewer samples in keep="] if len(self.held) else []
        way_out = f"no budget can be met: {', or '.join(ways)}"
        if nearest:
            share = f"fraction={nearest / n:.6g}"
            way_out = f"the nearest budget that can be met is count={nearest} ({share})"
        return f"the budget prunes {asked} of {n} samples, but {' and '.join(reasons)}{limit}; {way_out}"

    def _broken_floor(self, c: int, spare: Ints) -> str:
        assert self.labels is not None
        stay = torch.cat([self.free, self.held])
        left = int((self.labels[stay] == c).sum())
        return (
            f"prune= leaves {left} samples of class {c}, but {self._floors()} keeps "
            f"{left - int(spare[c])}; take some out of prune=, or change the budget"
        )

    def _floors(self) -> str:
        quota = f"{self.budget.shares} with " if self.budget.shares else ""
        return f"{quota}min_per_class={self.budget.min_per_class}"
