"""What is wrong with a pool of samples, from one pass over it: nothing is dropped by looking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.base.indices import complement
from prunesampler.influence.directions import directions
from prunesampler.influence.headroom import advice, headroom
from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import check_classes, is_exact, leave_one_out
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.pool.copies import copies, originals, unusual
from prunesampler.pool.copies import directions as pointing
from prunesampler.pool.suspects import TIMES, suspects
from prunesampler.pool.wanted import doubts, own_probability
from prunesampler.solve.budget import Constraints

SKEWED = 0.8
"""Effective number of classes, as a share of their number, below which they count as unequal."""


@dataclass(frozen=True, eq=False)
class Finding:
    """Samples of one kind, the surest first.

    Args:
        indices: The samples, int64, shape (k,).
        confidence: How sure each is, 0 to 1, shape (k,).
        advice: What was seen and what to do, one sentence.
    """

    indices: Tensor
    confidence: Tensor
    advice: str

    def __len__(self) -> int:
        """Number of samples k."""
        return len(self.indices)


NOTHING = torch.empty(0, dtype=torch.int64), torch.empty(0)


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
        remarks: The line of advice of headroom, classes and layer.

    Example:
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
    remarks: dict[str, str]

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
            ValueError: If numbers are not finite, or the wanted samples do not fit.
        """
        broken = (~measurements.tokens.finite()).nonzero()[:, 0]
        if len(broken):
            raise ValueError(
                f"{len(broken)} samples have numbers that are not finite, the first is {int(broken[0])}"
            )
        suspect, own = _suspects(measurements, influence)
        twins, groups = _copies(measurements, 1 - own, similar)
        share, known = headroom(measurements.errors), directions(measurements, influence)
        counts = None if labels is None else torch.bincount(labels)
        remarks = {
            "headroom": advice(share),
            "classes": _classes(counts),
            "layer": _layer(measurements, known),
        }
        target = _off_target(measurements, wanted, own)
        return cls(len(measurements), share, twins, groups, suspect, target, counts, known, remarks)

    def drop(self, *names: str) -> Constraints:
        """The samples of these findings as those that must go, for ``InfluencePruner(constraints=)``.

        Args:
            names: Any of "copies", "suspects" and "off_target".

        Raises:
            ValueError: For other names, none, or if nothing would be left.
        """
        known = {"copies": self.copies, "suspects": self.suspects, "off_target": self.off_target}
        if not names or set(names) - set(known):
            raise ValueError(
                f"drop takes some of {', '.join(known)}, got {', '.join(names) or 'none'}"
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

    def __str__(self) -> str:
        lines = [f"| {self.num_samples} samples | found | share | |", "|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in self._rows()]
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        yield "headroom", "", f"{self.headroom:.2f}", self.remarks["headroom"]
        findings = {
            "near copies": self.copies,
            "suspect labels": self.suspects,
            "off-target": self.off_target,
        }
        for name, finding in findings.items():
            yield name, str(len(finding)), f"{len(finding) / self.num_samples:.1%}", finding.advice
        yield (
            "classes",
            "" if self.counts is None else str(int((self.counts > 0).sum())),
            "",
            self.remarks["classes"],
        )
        yield "layer", f"{self.directions:.0f} directions", "", self.remarks["layer"]


def _suspects(measurements: Measured, influence: Influence) -> tuple[Finding, Tensor]:
    """Suspect labels, and the probability of every label as `doubts` takes it, shape (n,); 1 if unknown."""
    unknown = torch.ones(len(measurements))
    try:
        held = check_classes(measurements)
        own_probability(held)
    except ValueError as error:
        return Finding(*NOTHING, f"not applicable: {error}"), unknown
    assert held.labels is not None
    p = leave_one_out(held, influence)
    indices, sure = suspects(p, held.labels)
    how = "" if is_exact(influence) else " (the curvature is approximate)"
    text = f"another class is {TIMES:.0f} times as probable, by the layer without the sample{how}"
    advice = (
        f"{text}: look at them; where labels are noisy, drop them"
        if len(indices)
        else f"none: nowhere {text}"
    )
    judged = (
        p.gather(1, held.labels[:, None])[:, 0] if is_exact(influence) else own_probability(held)
    )
    return Finding(indices, sure, advice), judged


def _copies(measurements: Measured, doubt: Tensor, similar: float | None) -> tuple[Finding, Tensor]:
    """Near copies but for the one of each group that is doubted least, and the groups."""
    alone = torch.full((len(measurements),), -1)
    try:
        if isinstance(measurements, Sequences):
            raise ValueError("a sequence has features for each token, not of its own")
        features = measurements.inputs
        least = unusual(features) if similar is None else similar
        groups = copies(features, least)
    except ValueError as error:
        if similar is not None and not 0 < similar <= 1:
            raise
        return Finding(*NOTHING, f"not applicable: {error}"), alone
    kept = originals(groups, doubt)
    many = (groups >= 0).nonzero()[:, 0]
    gone = many[kept[groups[many]] != many]
    x = pointing(features)
    cosines = (x[gone] * x[kept[groups[gone]]]).sum(1).clamp(0, 1)
    order = cosines.argsort(descending=True, stable=True)
    text = f"cosine of the features above {least:.3f}"
    if not len(gone):
        return Finding(*NOTHING, f"none: no pair has a {text}"), groups
    differ = _differing(groups, measurements.tokens.labels)
    labels = f"; in {differ} of them labels differ, which are worth a look" if differ else ""
    advice = f"in {len(kept)} groups, {text}: one of each group is enough{labels}"
    return Finding(gone[order], cosines[order], advice), groups


def _differing(groups: Tensor, labels: Tensor | None) -> int:
    """Number of groups whose samples have more than one label."""
    if labels is None:
        return 0
    inside = groups >= 0
    pairs = torch.stack([groups[inside], labels[inside]]).unique(dim=1)  # type: ignore[no-untyped-call]
    return int((torch.bincount(pairs[0]) > 1).sum())


def _off_target(measurements: Measured, wanted: Measured | None, own: Tensor) -> Finding:
    """Samples that are not like the wanted ones; ``own`` is what `_suspects` returns."""
    if wanted is None:
        return Finding(
            *NOTHING, "no wanted samples given: give wanted=, the scores of some that are sure"
        )
    found = doubts(measurements, wanted, own)
    indices, lacking = found.off_target(), int(found.unknown.sum())
    if not len(indices):
        return Finding(
            *NOTHING, f"none: labels are believed as those of the {len(wanted)} wanted samples are"
        )
    ranks = torch.searchsorted(found.wanted.sort().values, found.pool[indices])
    text = f"{lacking} have a label that no wanted sample has; " if lacking else ""
    advice = (
        f"{text}so many labels are doubted more than the {len(wanted)} wanted samples' are: drop them, or take "
        "objective=Target(wanted) with a budget of your own"
    )
    return Finding(indices, (ranks / len(wanted)).float(), advice)


def _classes(counts: Tensor | None) -> str:
    if counts is None:
        return "unknown: give the pruner labels="
    held = counts[counts > 0].double()
    effective = float(held.sum().square() / held.square().sum())
    text = f"from {int(held.min())} to {int(held.max())} samples, as {effective:.1f} equal classes"
    if effective < SKEWED * len(held):
        return f'{text}: unequal; Budget(per_class="equal"), or logits adjusted by the class counts, may help'
    return text


def _layer(measurements: Measured, known: float) -> str:
    each = len(measurements.tokens) / max(known, 1.0)
    text = f"{each:.1f} samples for each of {known:.0f} directions that they determine, of {measurements.parameters}"
    return f"{text}: {_few(each)}"


def _few(each: float) -> str:
    if each < 4:
        return "few, so a part of them will not give the same layer"
    return "pruner.frontier(model) tells how few give the same layer"
