"""What is wrong with a pool of samples, from one pass over it: nothing is dropped by looking."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.files import write_atomically
from prunesampler.base.indices import complement
from prunesampler.influence.certificate import random_shift
from prunesampler.influence.directions import directions
from prunesampler.influence.headroom import advice, headroom
from prunesampler.influence.influence import Influence
from prunesampler.influence.sequences import Measured
from prunesampler.page.drawings import draw_bars
from prunesampler.page.layout import render
from prunesampler.page.tables import as_html
from prunesampler.select.audit_page import audit_page
from prunesampler.select.findings import Finding, near_copies, off_target, suspect_labels
from prunesampler.select.samples import check_length
from prunesampler.solve.annealing import anneal
from prunesampler.solve.budget import Budget, Constraints

SKEWED = 0.8
"""Effective number of classes, as a share of their number, below which they count as unequal."""
EACH, MOVES = 4, 1_000_000
"""Samples for each direction that are searched for, and swaps that the search proposes."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What one pass tells of n samples; ``str(audit)`` is a table with a line of advice for each.

    Args:
        num_samples: Number of samples n.
        headroom: Share of the gradients that the hardest half holds.
        copies: Near copies, without the one of each group that is believed most, with the cosine to it.
        groups: Number of the group of near copies of each sample, or -1, int64, shape (n,).
        suspects: Samples whose label is not believed by a layer that was not trained on them.
        off_target: Samples that are not like the wanted ones, with the share of these that are doubted less.
        counts: Number of samples of each class, int64, shape (classes,), or None if unknown.
        directions: Number of directions of the layer that the data determines.
        few: A number of samples, four for each direction, and how far a chosen set of them moves the layer, as a
            share of what a random one does; None if there are too few, or it would take minutes.
        remarks: The line of advice of headroom, classes and layer.
        labels: Class of each sample as the loss took it, int64, shape (n,), or None if unknown; it is what
            suspects are suspect of.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(16), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data + data[:2], budget=Budget(count=9), progress=False)
        >>> audit = pruner.measure(torch.nn.Linear(16, 3)).audit()
        >>> len(audit.copies), audit.drop("copies").prune.tolist()
        (2, [60, 61])
    """

    num_samples: int
    headroom: float
    copies: Finding
    groups: Tensor
    suspects: Finding
    off_target: Finding
    counts: Tensor | None
    directions: float
    few: tuple[int, float] | None
    remarks: dict[str, str]
    labels: Tensor | None = None

    @classmethod
    def of(
        cls,
        measurements: Measured,
        influence: Influence,
        labels: Tensor | None,
        wanted: Measured | None,
        similar: float | None,
    ) -> Audit:
        """Look at measured samples.

        Args:
            measurements: Measurements of n samples.
            influence: Their influence.
            labels: Class of every sample, int64, shape (n,), or None.
            wanted: Measurements of wanted samples, or None.
            similar: Least cosine of near copies, or None for one that is unusual.

        Raises:
            ValueError: If numbers are not finite.
        """
        broken = (~measurements.tokens.finite()).nonzero()[:, 0]
        if len(broken):
            raise ValueError(
                f"{len(broken)} samples have numbers that are not finite, the first is {int(broken[0])}"
            )
        suspect, own = suspect_labels(measurements, influence)
        twins, groups = near_copies(measurements, 1 - own, similar)
        share, known = headroom(measurements.errors), directions(measurements, influence)
        few = _few(influence, known)
        counts = None if labels is None else torch.bincount(labels)
        remarks = {
            "headroom": advice(share),
            "classes": _classes(counts),
            "layer": _layer(measurements, known, few),
        }
        target = off_target(measurements, wanted, own)
        return cls(
            len(measurements), share, twins, groups, suspect, target, counts, known, few, remarks,
            measurements.labels,
        )  # fmt: skip

    def drop(self, *names: str) -> Constraints:
        """The samples of these findings as those that must go, for ``InfluencePruner(constraints=)``.

        Where a whole class is off-target, the budget needs ``min_per_class=0``.

        Args:
            names: Any of "copies", "suspects" and "off_target".

        Raises:
            ValueError: For other names, none, or if nothing would be left.
        """
        known = {"copies": self.copies, "suspects": self.suspects, "off_target": self.off_target}
        if not names or any(name not in list(known) for name in names):
            raise ValueError(
                f"drop takes some of {', '.join(known)}, one after another; got {', '.join(map(str, names)) or 'none'}"
            )
        gone = torch.cat([known[name].indices for name in names]).unique()  # type: ignore[no-untyped-call]
        if len(gone) == self.num_samples:
            raise ValueError(f"this would drop all {self.num_samples} samples")
        return Constraints(prune=gone)

    def kept(self, *names: str) -> Tensor:
        """What is left without these findings, int64, ascending, for ``sampler.restrict``; see `drop`."""
        gone = self.drop(*names).prune
        assert isinstance(gone, Tensor)
        return complement(gone, self.num_samples)

    def report(self, path: str | os.PathLike[str], dataset: Any = None) -> None:
        """Write one HTML file that shows what was found, whole or not at all; it needs no network.

        Args:
            path: The file.
            dataset: The dataset that was measured, to show some of its samples, with names of classes where it has
                them (`prunesampler.select.samples.Names`); it is left as it was.

        Raises:
            ValueError: If the dataset has another number of samples.
            ImportError: If jinja2 or Pillow is not installed.

        Examples:
            >>> import tempfile
            >>> from prunesampler import Budget, InfluencePruner
            >>> data = [(torch.randn(16), i % 3) for i in range(60)]
            >>> pruner = InfluencePruner(data, budget=Budget(count=9), progress=False)
            >>> audit = pruner.measure(torch.nn.Linear(16, 3)).audit()
            >>> audit.report(Path(tempfile.mkdtemp(), "pool.html"), data)
        """
        check_length(dataset, self.num_samples, "audit")
        write_atomically(Path(path), render(audit_page(self, dataset)).encode())

    def plot(self, ax: Any = None) -> Any:
        """Draw how many samples were found of each kind; return the matplotlib axes.

        Args:
            ax: Axes to draw on; by default new ones, whose ``figure`` can be saved.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        found = {name: len(finding) for name, finding in self._findings().items()}
        return draw_bars(ax, found, f"samples, of {self.num_samples}")

    def _findings(self) -> dict[str, Finding]:
        return {
            "near copies": self.copies, "suspect labels": self.suspects, "off-target": self.off_target,
        }  # fmt: skip

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def __str__(self) -> str:
        lines = [f"| {self.num_samples} samples | found | share | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield "headroom", "", f"{self.headroom:.2f}", self.remarks["headroom"]
        for name, finding in self._findings().items():
            yield name, str(len(finding)), f"{len(finding) / self.num_samples:.1%}", finding.advice
        yield (
            "classes",
            "" if self.counts is None else str(int((self.counts > 0).sum())),
            "",
            self.remarks["classes"],
        )
        yield "layer", f"{self.directions:.0f} directions", "", self.remarks["layer"]


def _classes(counts: Tensor | None) -> str:
    if counts is None:
        return "unknown: give the pruner labels="
    held = counts[counts > 0].double()
    effective = float(held.sum().square() / held.square().sum())
    text = f"from {int(held.min())} to {int(held.max())} samples, as {effective:.1f} equal classes"
    if effective < SKEWED * len(held):
        return f'{text}: unequal; Budget(per_class="equal"), or logits adjusted by the class counts, may help'
    return text


def _layer(measurements: Measured, known: float, few: tuple[int, float] | None) -> str:
    each = len(measurements.tokens) / max(known, 1.0)
    text = f"{each:.1f} samples for each of {known:.0f} directions that they determine, of {measurements.parameters}"
    if few is None:
        return f"{text}: pruner.frontier(model) tells how few of them give nearly the same layer"
    kept, share = few
    return f"{text}; {kept} chosen ones move it by {share:.1%} of what as many random ones do"


def _few(influence: Influence, known: float) -> tuple[int, float] | None:
    """How far the layer is from that of a few samples a direction; None where a search takes minutes.

    Returns:
        The number of samples, and the norm of their shift as a share of a random set's.
    """
    kept = max(2, math.ceil(EACH * known))
    if influence.iterative or 2 * kept > len(influence):
        return None
    pruned = len(influence) - kept
    found = anneal(influence, Budget(count=pruned, min_per_class=0), moves=MOVES)
    return kept, float(found.norm) / max(random_shift(influence, pruned, seed=0), 1e-30)
