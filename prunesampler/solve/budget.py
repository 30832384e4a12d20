"""What is asked for: how much to prune, and which samples must stay or go."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from prunesampler.base.checks import checked_indices


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much to prune. Give exactly one of ``fraction``, ``count`` and ``epsilon``.

    Args:
        fraction: Share of the whole dataset to prune, in (0, 1), rounded to whole samples.
        count: Number of samples to prune.
        epsilon: Largest norm of the predicted (first-order) parameter shift, in the units of the
            measured layer's parameters; prunes as many samples as can be found within it. It
            bounds a prediction, not the accuracy of a network that is retrained.
        max_fraction: Largest share to prune with ``epsilon``. Influences sum to zero, so without
            a cap "prune everything" would satisfy any epsilon.
        min_per_class: Number of samples to keep at least of every class (all of a smaller class).
            If classes are unknown, a floor of one does nothing and a higher one is an error.
        proportional: Whether every class keeps its share of the kept samples, rounded to whole
            samples by largest remainders, and no less than ``min_per_class``.
        per_class: "equal" keeps as many of every class, and all of a class that has fewer, so that the large
            classes are pruned; None leaves the classes to the selection.

    Raises:
        ValueError: If a value is out of range, or not exactly one of the first three is given.
        TypeError: If a value is not a number.

    Examples:
        >>> Budget(fraction=0.4).count_of(50_000)
        20000
    """

    fraction: float | None = None
    count: int | None = None
    epsilon: float | None = None
    max_fraction: float = 0.9
    min_per_class: int = 1
    proportional: bool = False
    per_class: Literal["equal"] | None = None

    def __post_init__(self) -> None:
        given = [k for k in ("fraction", "count", "epsilon") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a budget takes exactly one of fraction, count and epsilon, got {given or 'none'}"
            )
        for name in ("fraction", "epsilon", "max_fraction"):
            self._convert(name, float)
        for name in ("count", "min_per_class"):
            self._convert(name, operator.index)
        if not isinstance(self.proportional, bool):
            raise TypeError(f"proportional must be True or False, got {self.proportional!r}")
        if self.per_class not in (None, "equal") or (self.per_class and self.proportional):
            raise ValueError(
                f'per_class={self.per_class!r} with proportional={self.proportional}: give per_class="equal", or '
                "proportional=True for the shares that classes have, or neither"
            )
        self._check("fraction", lambda x: 0 < x < 1, "lie between 0 and 1", "0.4 prunes 40 %")
        self._check(
            "count",
            lambda x: x >= 1,
            "be a whole number of at least 1",
            "it is a number of samples",
        )
        self._check(
            "epsilon", lambda x: 0 <= x < math.inf, "be zero or more and finite", "it bounds a norm"
        )
        self._check(
            "max_fraction", lambda x: 0 < x < 1, "lie between 0 and 1", "0.9 prunes 90 % at most"
        )
        self._check(
            "min_per_class", lambda x: x >= 0, "be zero or more", "it is a number of samples"
        )

    def _check(self, name: str, valid: Callable[[Any], bool], rule: str, hint: str) -> None:
        value = getattr(self, name)
        if value is not None and not valid(value):
            raise ValueError(f"{name} must {rule}, got {value}; {hint}")

    def _convert(self, name: str, kind: Callable[[Any], float]) -> None:
        """Turn NumPy and torch numbers into Python numbers, so that a budget can be saved."""
        value = getattr(self, name)
        if value is None:
            return
        try:
            if isinstance(value, (str, bool)):
                raise TypeError
            object.__setattr__(self, name, kind(value))
        except TypeError as error:
            what = "a whole number" if kind is operator.index else "a number"
            raise TypeError(f"{name} must be {what}, got {value!r}") from error

    def __str__(self) -> str:
        """The arguments that are not as by default."""
        held = [(each.name, getattr(self, each.name), each.default) for each in fields(self)]
        given = [f"{name}={value!r}" for name, value, default in held if value != default]
        return f"Budget({', '.join(given)})"

    def count_of(self, num_samples: int) -> int:
        """Number of samples to prune out of ``num_samples``; with ``epsilon``, the most.

        Raises:
            ValueError: If that is none or all of them.
        """
        if num_samples < 2:
            raise ValueError(
                f"a dataset of {num_samples} sample cannot be pruned: a selection prunes at least one "
                "sample and keeps at least one; it takes a dataset of 2 or more"
            )
        most = num_samples - 1
        way_out = f"ask for 1 to {most}" if most > 1 else "ask for 1, as count=1 does"
        if self.count is not None:
            size, asked = self.count, f"count={self.count}"
        elif self.fraction is not None:
            size, asked = round(self.fraction * num_samples), f"fraction={self.fraction}"
        else:
            size = math.floor(self.max_fraction * num_samples + 1e-9)
            asked = f"max_fraction={self.max_fraction}"
            way_out = f"raise it to 1/{num_samples} or more"
        if not 1 <= size < num_samples:
            raise ValueError(
                f"{asked} of {num_samples} samples prunes {size}; a selection prunes at least one "
                f"sample and keeps at least one: {way_out}"
            )
        return size

    def floors(self, labels: Tensor | None, size: int | None = None) -> Tensor | None:
        """Number of samples to keep of each class, int64, shape (classes,), or None without floors.

        Args:
            labels: Class of every sample, int64, shape (n,), or None if unknown.
            size: Number of samples to prune; with ``proportional`` and ``per_class`` the floors depend on it.

        Raises:
            ValueError: If the floors need the classes, and these are unknown.
        """
        if labels is None:
            if self.shares or self.min_per_class > 1:
                asked = self.shares or f"min_per_class={self.min_per_class}"
                raise ValueError(
                    f"{asked} needs the class of every sample, "
                    "which this loss does not tell; pass labels="
                )
            return None
        counts = torch.bincount(labels)
        floors = counts.clamp(max=self.min_per_class)
        if not self.shares or size is None:
            return floors if self.min_per_class or self.shares else None
        if self.per_class == "equal":
            return _equal(counts, floors, len(labels) - size)
        return _quotas(counts, floors, len(labels) - size)

    @property
    def shares(self) -> str | None:
        """The argument that gives every class a number of its own, or None."""
        if self.per_class:
            return f'per_class="{self.per_class}"'
        return "proportional=True" if self.proportional else None


def _equal(counts: Tensor, floors: Tensor, kept: int) -> Tensor:
    """Split ``kept`` over classes as evenly as their counts allow, none below its floor."""
    found = floors.clone()
    while (left := kept - int(found.sum())) > 0:
        open_ = (found < counts) & (found == found[found < counts].min())
        rest = found[(found < counts) & ~open_]
        level = int(torch.minimum(counts, rest.min() if len(rest) else counts.max())[open_].min())
        step = min(level - int(found[open_][0]), left // int(open_.sum()))
        if step == 0:  # fewer are left than classes
            found[open_.nonzero()[:left, 0]] += 1
            break
        found[open_] += step
    return found


def _quotas(counts: Tensor, floors: Tensor, kept: int) -> Tensor:
    """Split ``kept`` over classes in proportion to their counts, none below its floor.

    If floors take more than their share, the other classes get less. Samples that are left after
    rounding down go to the largest remainders. Floors that exceed ``kept`` together are returned.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _level(counts, floors, middle).sum() <= kept else (low, middle)
        )
    exact = _level(counts, floors, low)
    whole = (exact + 1e-9).floor().long()
    left = max(0, kept - int(whole.sum()))
    room = whole < counts
    order = torch.where(room, exact - whole, -1.0).argsort(descending=True, stable=True)
    whole[order[: min(left, int(room.sum()))]] += 1
    return whole


def _level(counts: Tensor, floors: Tensor, share: float) -> Tensor:
    return torch.maximum(share * counts.double(), floors.double())


@dataclass(frozen=True, kw_only=True, eq=False)
class Constraints:
    """Samples that must stay, and samples that must go.

    Args:
        keep: Indices of samples that are never pruned, in any order.
        prune: Indices of samples that are always pruned; they count towards the budget.

    Examples:
        >>> keep, prune = Constraints(keep=[3, 1]).indices(num_samples=10)
        >>> keep.tolist(), prune.tolist()
        ([1, 3], [])
    """

    keep: Tensor | Sequence[int] | None = None
    prune: Tensor | Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Keep what an iterator gives, which can be asked only once."""
        for name in ("keep", "prune"):
            given = getattr(self, name)
            if isinstance(given, Iterator):
                object.__setattr__(self, name, list(given))

    def indices(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """The samples to keep and those to prune, each int64 and ascending.

        Raises:
            TypeError: If an index is not a whole number.
            ValueError: If an index is out of range or given twice.
        """
        keep, prune = (() if given is None else given for given in (self.keep, self.prune))
        return (
            checked_indices(keep, num_samples, "keep"),
            checked_indices(prune, num_samples, "prune"),
        )
