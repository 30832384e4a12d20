"""Predicted shift against the fraction pruned, from one pass over the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesampler.select.selection import Selection

COLUMNS = ("fraction", "shift", "newton_shift", "random_shift", "curvature_share")


@dataclass(frozen=True)
class Frontier:
    """One selection per fraction, from the smallest fraction to the largest.

    ``str(frontier)`` is a table; `prunesampler.report.plots.plot_frontier` plots it. Each of its
    selections can be given to ``sampler.restrict``.

    Args:
        selections: Selections from the same scores, by ascending fraction.

    Example:
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

    def __str__(self) -> str:
        lines = [
            "| pruned | predicted shift | Newton | random set | share of random | curvature kept |",
            "|---|---|---|---|---|---|",
        ]
        for fraction, shift, newton, random, share in self.array:
            lines.append(
                f"| {fraction:.1%} | {shift:.3g} | {newton:.3g} | {random:.3g} "
                f"| {shift / random:.2%} | {'-' if math.isnan(share) else f'{share:.0%}'} |"
            )
        return "\n".join(lines)
