"""The selection problem, with everything that a set must respect, as the solvers see it.

The energy of a set S of m samples is the norm of its shift, as a share of that of a random set,
plus the mean cost of its samples. Without costs the first is all there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.checks import checked_cost, checked_labels
from prunesampler.influence.influence import Influence
from prunesampler.solve.budget import Budget
from prunesampler.solve.constraints import Constraints
from prunesampler.solve.kernels import Limits, Units, fill

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Problem:
    """Which units may be pruned, and within which limits.

    A unit is a sample, or a group of samples that go together. Units that must be kept or pruned
    are settled here; what is left to a solver is free.

    Args:
        influence: of n samples.
        budget: how much to prune.
        labels: class of every sample, int64, shape (n,), or None.
        cost: of pruning each sample, float64, shape (n,), or None.
        members: samples of the free units, unit by unit.
        start: where each free unit begins in ``members``, shape (U + 1,).
        forced: samples that must be pruned, int64, ascending.
        held: samples that must be kept, int64, ascending.
    """

    influence: Influence
    budget: Budget
    labels: Tensor | None
    cost: Tensor | None
    members: Tensor
    start: Tensor
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
        """Settle what is fixed.

        Raises:
            ValueError: when constraints contradict each other, a label is below zero, or a cost is
                not finite.
        """
        n = len(influence)
        labels = None if labels is None else checked_labels(labels, n)
        given = (constraints or Constraints()).checked(n)
        unit = given.unit_of(n)
        settled = torch.zeros(int(unit.max()) + 1, dtype=torch.int64)
        assert isinstance(given.keep, Tensor)
        assert isinstance(given.prune, Tensor)
        settled[unit[given.prune]] = 1
        both = given.keep[settled[unit[given.keep]] == 1]
        if len(both):
            raise ValueError(
                f"sample {int(both[0])} must be kept, and so must not its group or itself: keep= "
                "and prune= contradict each other; take it out of one of them"
            )
        settled[unit[given.keep]] = 2
        free = settled[unit] == 0
        members = free.nonzero().flatten()
        members = members[unit[members].argsort(stable=True)]
        sizes = torch.bincount(unit[free], minlength=len(settled))
        sizes = sizes[settled == 0]
        start = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        state = settled[unit]
        return cls(
            influence, budget, labels, None if cost is None else checked_cost(cost, n), members,
            start, (state == 1).nonzero().flatten(), (state == 2).nonzero().flatten(),
        )  # fmt: skip

    def __len__(self) -> int:
        """Number of free units U."""
        return len(self.start) - 1

    @property
    def grouped(self) -> bool:
        """Whether any unit has several samples."""
        return len(self.members) > len(self)

    def sizes(self) -> Tensor:
        """Samples of each free unit, int64, shape (U,)."""
        return self.start.diff()

    def gradient_sums(self) -> Iterator[Tensor]:
        """Sum of the centred gradients of each free unit's samples, shape (K, D), one by one."""
        for first, last in zip(self.start[:-1].tolist(), self.start[1:].tolist(), strict=True):
            yield self.influence.gradient_sum(self.members[first:last])

    def unit_of_members(self) -> Tensor:
        """Free unit of each entry of ``members``."""
        return torch.repeat_interleave(torch.arange(len(self)), self.sizes())

    def add_up(self, values: Tensor) -> Tensor:
        """Sum over each free unit's samples of values of shape (n,)."""
        zero = torch.zeros(len(self), dtype=values.dtype)
        return zero.index_add(0, self.unit_of_members(), values[self.members])

    def samples(self, pruned: Bools) -> Tensor:
        """All samples to prune when these free units are, int64, ascending."""
        chosen = self.members[torch.from_numpy(pruned)[self.unit_of_members()]]
        return torch.cat([self.forced, chosen]).sort().values

    def pools(self) -> Ints:
        """Class of each free unit's first sample where every class has its quota, else zero.

        With quotas swaps between classes are never allowed, so they need not be proposed.
        """
        if self.labels is None or not self.budget.proportional:
            return np.zeros(len(self), dtype=np.int64)
        return self.labels[self.members[self.start[:-1]]].numpy()

    def units(self, size: int) -> Units:
        """Sizes, costs and classes of the free units, for sets of about ``size`` samples."""
        sizes = self.sizes().numpy()
        costs = np.zeros(len(self))
        if self.cost is not None:
            costs = self.add_up(self.cost).numpy() / size
        if self.labels is None:
            none = np.zeros(0, dtype=np.int64)
            return Units(sizes, costs, np.zeros(len(self) + 1, dtype=np.int64), none, none)
        classes = int(self.labels.max()) + 1
        key = self.unit_of_members() * classes + self.labels[self.members]
        key, counts = torch.unique(key, return_counts=True)
        per_unit = torch.bincount(key // classes, minlength=len(self))
        start = torch.cat([torch.zeros(1, dtype=torch.int64), per_unit.cumsum(0)])
        return Units(sizes, costs, start.numpy(), (key % classes).numpy(), counts.numpy())

    def limits(self, size: int) -> Limits:
        """The limits of pruning ``size`` samples, with no free unit pruned yet."""
        floors = self.budget.floors(self.labels, size)
        none = torch.zeros(0, dtype=torch.int64)
        kept = none
        if self.labels is not None:
            stay = torch.cat([self.members, self.held])
            kept = torch.bincount(self.labels[stay], minlength=int(self.labels.max()) + 1)
        most = size - len(self.forced)
        slack = int(self.sizes().median()) - 1 if len(self) else 0
        count = [np.array([x], dtype=np.int64) for x in (0, most - slack, most)]
        return Limits(kept.numpy(), (none if floors is None else floors).numpy(), *count)

    def fill(self, order: Ints, size: int) -> tuple[Bools, Limits]:
        """Prune free units in this order until there are about ``size`` pruned samples."""
        limits = self.limits(size)
        return fill(order, self.units(size), limits), limits

    def random_start(self, size: int, seed: int) -> tuple[Bools, Limits]:
        """A random set within the limits.

        Some lone samples come last, to fill what groups leave open.
        """
        order = np.random.default_rng(seed).permutation(len(self))
        sizes = self.sizes().numpy()[order]
        alone = np.flatnonzero(sizes == 1)
        last = np.zeros(len(order), dtype=bool)
        last[alone[: max(0, int(sizes.max(initial=1)) - 1)]] = True
        return self.fill(np.concatenate([order[~last], order[last]]), size)

    def range(self, size: int | None = None) -> tuple[int, int]:
        """Fewest and most samples that can be pruned.

        With groups of several sizes the most is what a greedy choice finds.

        Args:
            size: that is asked for; quotas depend on it.

        Raises:
            ValueError: when the samples that must be pruned break a floor.
        """
        n = len(self.influence)
        limits = self.limits(n)
        floors = self.budget.floors(self.labels, size)
        if floors is not None:
            limits = limits._replace(floors=floors.numpy())
            broken = np.flatnonzero(limits.kept < limits.floors)
            if len(broken):
                c = int(broken[0])
                raise ValueError(
                    f"prune= leaves {limits.kept[c]} samples of class {c}, but {self._floors()} "
                    f"keeps {limits.floors[c]}; take some out of prune=, or change the budget"
                )
        order = np.argsort(self.sizes().numpy(), kind="stable")
        fill(order, self.units(n), limits)
        return len(self.forced), len(self.forced) + int(limits.pruned[0])

    def size(self) -> int:
        """How many samples to prune; with epsilon, the most that may be.

        Raises:
            ValueError: when the budget contradicts floors or constraints.
        """
        n, budget = len(self.influence), self.budget
        size = budget.count_of(n)
        least, most = self.range(None if budget.epsilon is not None else size)
        if budget.epsilon is not None:
            if least > size:
                raise ValueError(
                    f"prune= names {least} samples, more than the {size} of {n} that max_fraction="
                    f"{budget.max_fraction} allows; prune fewer or raise it"
                )
            return min(size, most)
        smallest = int(self.sizes().min()) if len(self) else n
        if least < size < least + smallest:
            if least:
                return least
            nearest = smallest
            raise ValueError(
                f"the budget prunes {size} of {n} samples, but the smallest group that is left has "
                f"{smallest}; " + _nearest(nearest, n)
            )
        if self.grouped and most < size < most + int(self.sizes().max()):
            return size  # groups seldom add up exactly
        if not least <= size <= min(most, n - 1):
            nearest = least if size < least else min(most, n - 1)
            raise ValueError(
                f"the budget prunes {size} of {n} samples, but {self._reasons(size, most)}; "
                + _nearest(nearest, n)
            )
        return size

    def _reasons(self, size: int, most: int) -> str:
        """What stands against pruning so many samples."""
        if size < len(self.forced):
            return f"prune= and its groups name {len(self.forced)} that must go"
        reasons = []
        if len(self.held):
            reasons.append(f"keep= and its groups name {len(self.held)} that must stay")
        floors = self.budget.floors(self.labels, size)
        if floors is not None:
            reasons.append(
                f"{self._floors()} keeps {int(floors.sum())} in {int((floors > 0).sum())} classes"
            )
        return f"{' and '.join(reasons)}, which lets at most {most} go"

    def _floors(self) -> str:
        share = "proportional=True with " if self.budget.proportional else ""
        return f"{share}min_per_class={self.budget.min_per_class}"


def _nearest(count: int, num_samples: int) -> str:
    if not 1 <= count < num_samples:
        return "no budget can be met: lower the floors, keep fewer, or make smaller groups"
    share = count / num_samples
    return f"the nearest budget that can be met is count={count} (fraction={share:.6g})"
