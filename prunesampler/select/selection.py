"""Selections, in memory and on disk."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.files import pack, unpack, write_atomically
from prunesampler.base.indices import complement
from prunesampler.page.drawings import draw_bars
from prunesampler.page.layout import render
from prunesampler.page.tables import table
from prunesampler.select.fields import budget_from, check_weights, number, optional
from prunesampler.select.measured import Measures
from prunesampler.select.moment import Moment
from prunesampler.select.pages import Beside, selection_page
from prunesampler.select.samples import check_length
from prunesampler.select.scores import Scores, check_same
from prunesampler.select.verdict import (
    HARDLY,
    Compared,
    checked_facts,
    compare,
    in_words,
    largest_ratio,
)
from prunesampler.solve.budget import Budget

KIND = ("prunesampler.selection", 2)
LITTLE = 0.1
"""Share of the curvature below which the damping alone determines some direction."""
MOST_SAMPLES = 10**10
"""Largest size of a dataset, so that a damaged file cannot claim all memory."""


@dataclass(frozen=True, eq=False)
class Selection:
    """The samples to prune, and the predicted effect of pruning them.

    Args:
        pruned: Indices to prune, int64, shape (m,), ascending.
        num_samples: Size n of the dataset.
        shift: Norm of the first-order parameter shift, in the units of the scored parameters.
        newton_shift: Norm of one Newton step on the kept samples: the shift with their curvature
            instead of the full one. It is a better prediction; NaN where it was not computed, as
            for redrawn sets.
        bound: Proved upper bound on the shift, in the units of the parameters, or None. It holds
            when only the scored layer is trained, with a convex loss and an L2 penalty equal to the
            damping, to convergence, before and after pruning.
        budget: Budget that was given.
        metadata: Seconds, settings, counts, the scored layer and the shifts of random sets, as JSON
            values by name.
        curvature_share: Smallest share of the full curvature that the kept samples have in any
            direction (`prunesampler.influence.certificate.curvature_share`), or None.
        loss_bound: Proved where ``bound`` is: the change of the mean loss is at most this, over any
            samples whose inputs to the layer have on average no larger norm than in training.
        weights: Weights of the kept samples, float32, shape (n - m,), for those who fit a head by
            ``sample_weight`` (`InfluencePruner.weights`), or None. Samplers leave them unused.

    Raises:
        ValueError: For indices that are not ascending, distinct and within the dataset, or that
            leave no sample; for weights that are not one finite number of at least 0 per kept sample.

    Examples:
        >>> budget = Budget(count=2)
        >>> found = Selection(torch.tensor([1, 3]), 5, 0.1, 0.1, bound=None, budget=budget)
        >>> found.kept.tolist()
        [0, 2, 4]
        >>> Selection.from_bytes(found.to_bytes()).pruned.tolist()
        [1, 3]
    """

    pruned: Tensor
    num_samples: int
    shift: float
    newton_shift: float
    bound: float | None
    budget: Budget
    metadata: dict[str, Any] = field(default_factory=dict)
    curvature_share: float | None = None
    loss_bound: float | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        pruned, n = self.pruned, self.num_samples
        if pruned.dtype != torch.int64 or pruned.dim() != 1:
            raise ValueError(
                f"pruned must be int64 of shape (m,), got {pruned.dtype} {pruned.shape}"
            )
        if n > MOST_SAMPLES:
            raise ValueError(
                f"num_samples must be at most {MOST_SAMPLES}, got {n}: no dataset is so large"
            )
        if len(pruned) >= n:
            raise ValueError(f"{len(pruned)} of {n} samples pruned: nothing would be kept")
        if len(pruned) and (pruned[0] < 0 or pruned[-1] >= n or (pruned.diff() <= 0).any()):
            raise ValueError(f"pruned indices must be ascending, distinct and within 0 to {n - 1}")
        if self.weights is not None:
            check_weights(self.weights, n - len(pruned))

    @property
    def kept(self) -> Tensor:
        """Indices that stay, int64, shape (n - m,), ascending."""
        return complement(self.pruned, self.num_samples)

    @property
    def ratio(self) -> float:
        """The predicted shift as a share of a random set's, by the less favourable prediction.

        First order is compared with first order, and Newton with Newton. NaN where no shift of a
        random set is known, or nothing was pruned.
        """
        return largest_ratio(self._compared) if len(self.pruned) else math.nan

    @property
    def beats_random(self) -> bool:
        """Whether the predicted shift is clearly below a random set's; true if unknown."""
        return not self.ratio >= HARDLY

    @property
    def verdict(self) -> str:
        """Text: whether the set is better than a random one, by how much, and if not, why."""
        return in_words(self._compared, len(self.pruned), self.num_samples, self.metadata)

    @property
    def _compared(self) -> list[Compared]:
        return compare(self.shift, self.newton_shift, self.metadata)

    @property
    def proved(self) -> str | None:
        """Text with what is proved and on which conditions, or None if nothing is."""
        if self.bound is None:
            return None
        damping = self.metadata.get("damping")
        loss = "" if self.loss_bound is None else f", mean loss changed by <= {self.loss_bound:.3g}"
        return (
            f"shift <= {self.bound:.3g}{loss}, if only this layer is trained, with a convex loss and "
            f"the L2 penalty {math.nan if damping is None else damping:.3g}, to convergence"
        )

    @property
    def certificate(self) -> str:
        """Text with what is proved, what is predicted and what is neither, and the conditions."""
        proved = self.proved or "nothing: give the curvature the L2 penalty in use as damping"
        predicted = f"shift {self.shift:.3g} to first order"
        if not math.isnan(self.newton_shift):
            predicted += f", {self.newton_shift:.3g} with the curvature of the kept samples"
        residual = self.metadata.get("residual")
        if residual is not None:
            predicted += f" (to a residual of {residual:.1g})"
        random = [f"{pair.random:.3g} {pair.how}" for pair in self._compared]
        if random:
            predicted += f" (a random set {' and '.join(random)})"
        if self.curvature_share is not None:
            predicted += f"; {self.curvature_share:.0%} of the curvature kept in every direction"
            if self.curvature_share < LITTLE:
                predicted += (
                    ", so little that along some the predictions are worth little: prune less"
                )
        return (
            f"proved: {proved}\npredicted: {predicted}\n"
            "not predicted: how a network does whose other layers are trained too"
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the predicted shifts beside those of random sets; return the matplotlib axes.

        Args:
            ax: Axes to draw on; by default new ones, whose ``figure`` can be saved.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        bars: dict[str, float] = {}
        for pair in self._compared:
            bars |= {f"selected, {pair.how}": pair.own, f"random, {pair.how}": pair.random}
        return draw_bars(ax, bars, "predicted shift of the parameters")

    def _repr_html_(self) -> str:
        kept = self.num_samples - len(self.pruned)
        rows = [
            ("kept", f"{kept:,} of {self.num_samples:,} ({kept / self.num_samples:.0%})"),
            ("verdict", self.verdict), *(tuple(line.split(": ", 1)) for line in self.certificate.splitlines()),
        ]  # fmt: skip
        return table(("selection", ""), rows)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file atomically, so that it is complete or does not exist."""
        write_atomically(Path(path), self.to_bytes())

    def report(
        self,
        path: str | os.PathLike[str],
        dataset: Any = None,
        scores: Scores | None = None,
        *,
        frontier: Iterable[Selection] = (),
        moment: Moment | None = None,
    ) -> None:
        """Write one HTML file that shows the selection, whole or not at all; it needs no network.

        Args:
            path: The file.
            dataset: The dataset that was measured, to show some of its samples, with names of classes where it has
                them (`prunesampler.select.samples.Names`); it is left as it was.
            scores: The scores that the selection was made from, to show classes, errors and influence.
            frontier: Further selections from the same scores, as a `Frontier` holds them, to show what pruning
                more or less would cost.
            moment: When in a training run it was made, to show what changed, the plan and the time that it took.

        Raises:
            ValueError: If the dataset, the scores or the frontier are of another number of samples.
            ImportError: If jinja2 or Pillow is not installed.

        Examples:
            >>> import tempfile
            >>> selection = Selection(torch.tensor([1]), 3, 0.1, 0.1, None, Budget(count=1))
            >>> selection.report(Path(tempfile.mkdtemp(), "pruned.html"), ["a", "b", "c"])
        """
        check_length(dataset, self.num_samples, "selection")
        measures = None
        if scores is not None:
            check_same(scores, self.num_samples, None)
            measures = Measures(scores.measurements.errors, scores.labels, scores.influence)
        others = tuple(frontier)
        sizes = {other.num_samples for other in others} - {self.num_samples}
        if sizes:
            raise ValueError(
                f"the frontier is of {max(sizes)} samples and the selection is of {self.num_samples}; give one that "
                "was made from the same scores"
            )
        beside = Beside(dataset, measures, others, moment)
        write_atomically(Path(path), render(selection_page(self, beside)).encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: If the file is not a valid selection.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def to_bytes(self) -> bytes:
        """The selection in the format of `save`."""
        header = {
            "num_samples": self.num_samples,
            "shift": self.shift,
            "newton_shift": self.newton_shift,
            "bound": self.bound,
            "budget": asdict(self.budget),
            "metadata": self.metadata,
            "curvature_share": self.curvature_share,
            "loss_bound": self.loss_bound,
        }
        tensors = {"pruned": self.pruned}
        if self.weights is not None:
            tensors["weights"] = self.weights
        return pack(KIND, header, tensors)

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """Read what :meth:`to_bytes` returned; all of it is checked.

        Raises:
            ValueError: If the data are not a valid selection.
        """
        header, tensors = unpack(KIND, data)
        try:
            return cls(
                pruned=tensors["pruned"],
                num_samples=number(header["num_samples"], int),
                shift=number(header["shift"], float),
                newton_shift=number(header["newton_shift"], float),
                bound=optional(header["bound"]),
                budget=budget_from(header["budget"]),
                metadata=checked_facts(header["metadata"]),
                curvature_share=optional(header["curvature_share"]),
                loss_bound=optional(header["loss_bound"]),
                weights=tensors.get("weights"),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"not a complete selection: {error!r}") from error
