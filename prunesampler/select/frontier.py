"""Predicted shift against the fraction pruned, from one pass over the data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prunesampler.page.drawings import draw_shifts
from prunesampler.page.tables import as_html
from prunesampler.select.selection import Selection
from prunesampler.select.verdict import percent

COLUMNS = ("fraction", "shift", "newton_shift", "random_shift", "curvature_share")


@dataclass(frozen=True)
class Frontier:
    """One selection per fraction, from the smallest fraction to the largest.

    ``str(frontier)`` is a table, with a sentence where a set is no better than a random one; its share
    of random is the less favourable of both predictions (`Selection.ratio`). Each of its selections can
    be given to ``sampler.restrict``.

    Args:
        selections: Selections from the same scores, by ascending fraction.

    Examples:
        >>> import torch
        >>> from prunesampler import Budget
        >>> known = {"metadata": {"random_shift": 2.0}, "curvature_share": 0.9}
        >>> selection = Selection(
        ...     torch.tensor([1, 4]), 6, 0.5, 0.6, None, Budget(count=2), **known
        ... )
        >>> Frontier((selection,)).array.round(2).tolist()
        [[0.33, 0.5, 0.6, 2.0, 0.9]]
    """

    selections: tuple[Selection, ...]

    @property
    def array(self) -> NDArray[np.float64]:
        """One row for each of the k selections, float64, shape (k, 5); the columns are ``COLUMNS``.

        The fraction is the share pruned; shifts are predicted, in the units of the metric.
        """
        return np.array(
            [
                [
                    len(s.pruned) / s.num_samples, s.shift, s.newton_shift,
                    s.metadata["random_shift"], s.curvature_share,
                ]
                for s in self.selections
            ],
            dtype=np.float64,
        )  # fmt: skip

    def plot(self, ax: Any = None) -> Any:
        """Draw the shifts of selected and random sets; return the matplotlib axes.

        Args:
            ax: Axes to draw on; by default new ones, whose ``figure`` can be saved.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return draw_shifts(ax, self.array.T[:4])

    def __iter__(self) -> Iterator[Selection]:
        """The selections, by ascending fraction."""
        return iter(self.selections)

    def _repr_html_(self) -> str:
        return as_html(str(self))

    @property
    def doubts(self) -> str | None:
        """Text: at which fractions the set is no better than a random one, or None if at none.

        As in `InfluencePruner.select` nothing is said of objectives that ask for more than a small
        shift.
        """
        poor = [s for s in self.selections if not (s.beats_random or s.metadata.get("cost"))]
        if not poor:
            return None
        found = [
            f"{len(s.pruned) / s.num_samples:.1%} ({percent(s.ratio)} of its shift)" for s in poor
        ]
        sets = "the set is" if len(poor) == 1 else "the sets are"
        return (
            f"{sets} no better than a random one at {', '.join(found)}; the verdict of such a selection "
            "says why"
        )

    def __str__(self) -> str:
        lines = [
            "| pruned | predicted shift | Newton | random set | share of random | curvature kept |",
            "|---|---|---|---|---|---|",
        ]
        for (fraction, shift, newton, random, share), selection in zip(
            self.array, self.selections, strict=True
        ):
            lines.append(
                f"| {fraction:.1%} | {shift:.3g} | {newton:.3g} | {random:.3g} "
                f"| {selection.ratio:.2%} | {'-' if math.isnan(share) else f'{share:.0%}'} |"
            )
        if self.doubts:
            lines += ["", f"{self.doubts[0].upper()}{self.doubts[1:]}."]
        return "\n".join(lines)
