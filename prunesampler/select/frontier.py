"""What pruning costs at every fraction, from one pass over the data."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesampler.select.selection import Selection

COLUMNS = ("fraction", "shift", "newton_shift", "random_shift", "curvature_share")


@dataclass(frozen=True)
class Frontier:
    """One selection per fraction, from the smallest fraction to the largest.

    ``str(frontier)`` is a table. Any of the selections can be given to ``sampler.restrict``.

    Args:
        selections: of the same scores.
    """

    selections: tuple[Selection, ...]

    @property
    def array(self) -> NDArray[np.float64]:
        """One row per fraction, float64, shape (k, 5); the columns are ``COLUMNS``.

        The fraction is the share pruned; shifts are predictions in the metric's units.
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
                f"| {shift / random:.2%} | {share:.0%} |"
            )
        return "\n".join(lines)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw predicted shift against fraction pruned, ours and random, to an image file.

        Raises:
            ImportError: when matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('plots need matplotlib: pip install "prunesampler[plots]"') from error
        array = self.array
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        axes.semilogy(100 * array[:, 0], array[:, 3], "o--", color="0.5", label="random set")
        axes.semilogy(
            100 * array[:, 0], array[:, 1], "o-", color="C0", label="selected, first order"
        )
        axes.semilogy(100 * array[:, 0], array[:, 2], "x:", color="C1", label="selected, Newton")
        axes.set_xlabel("samples pruned (%)")
        axes.set_ylabel("predicted shift of the parameters")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(os.fspath(path), dpi=150)
