"""The page of an audit: what was found in a pool, and some samples of each kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from prunesampler.page.charts import Bar, bars
from prunesampler.page.layout import Card, Chart, Page, Section, Tile
from prunesampler.page.texts import count, listed, percent, sentence, short
from prunesampler.select.findings import Finding
from prunesampler.select.samples import Names, Sample, read_samples
from prunesampler.select.sections import class_charts, headroom_section

SHOWN, PAIRS, MISTAKES = 24, 12, 8
"""Samples in a gallery, pairs of near copies, and pairs of classes of which one is taken for the other."""
INAPPLICABLE = ("not applicable", "no wanted samples")
"""How the advice of a finding begins that could not be looked for."""


class Audited(Protocol):
    """What a page asks of `prunesampler.select.audit.Audit`, where all of it is explained."""

    @property
    def num_samples(self) -> int:
        """Number of samples n."""

    @property
    def headroom(self) -> float:
        """Share of the gradients that the hardest half holds."""

    @property
    def copies(self) -> Finding:
        """Near copies."""

    @property
    def suspects(self) -> Finding:
        """Suspect labels."""

    @property
    def off_target(self) -> Finding:
        """Samples that are not like the wanted ones."""

    @property
    def counts(self) -> Tensor | None:
        """Number of samples of each class."""

    @property
    def remarks(self) -> dict[str, str]:
        """Advice on headroom, classes and layer."""

    @property
    def labels(self) -> Tensor | None:
        """Class of each sample as the loss took it."""


def audit_page(audit: Audited, dataset: Any) -> Page:
    """The page of an audit.

    Args:
        audit: The audit.
        dataset: The dataset that it is of, or None.
    """
    names = Names.in_dataset(dataset)
    sections = [_found(audit), headroom_section(audit.headroom)]
    if audit.counts is not None:
        sections.append(_classes(audit.counts, audit.remarks["classes"], names))
    sections += _findings(audit, dataset, names)
    layer = (("Layer", audit.remarks["layer"]), ("Headroom", audit.remarks["headroom"]))
    sections.append(Section("layer", "The layer that looked", facts=layer))
    missing = "" if dataset is not None else "Samples are shown with dataset=."
    return Page("Audit", _headline(audit), _sentences(audit), sections, missing)


def _kinds(audit: Audited) -> dict[str, Finding]:
    return {
        "near copies": audit.copies,
        "suspect labels": audit.suspects,
        "off-target": audit.off_target,
    }


def _absent(finding: Finding) -> bool:
    """Whether this could not be looked for."""
    return finding.advice.startswith(INAPPLICABLE)


def _headline(audit: Audited) -> tuple[str, ...]:
    found = [(name, len(finding)) for name, finding in _kinds(audit).items() if len(finding)]
    if not found:
        absent = any(_absent(finding) for finding in _kinds(audit).values())
        where = " samples by what could be looked for." if absent else " samples."
        return "Nothing was found in ", count(audit.num_samples), where
    verbs = {
        "near copies": ("is a near copy", "are near copies"),
        "suspect labels": ("has a suspect label", "have suspect labels"),
        "off-target": ("is off-target", "are off-target"),
    }
    joints = [", "] + [", "] * (len(found) - 2) + [" and "] * (len(found) > 1)
    pieces = ["Of ", count(audit.num_samples), " samples"]
    for (name, number), joint in zip(found, joints, strict=True):
        before = pieces.pop() + joint
        pieces += [before, count(number), f" {verbs[name][number > 1]}"]
    return (*pieces[:-1], f"{pieces[-1]}.")


def _sentences(audit: Audited) -> tuple[str, ...]:
    gone = torch.cat([finding.indices for finding in _kinds(audit).values()]).unique()  # type: ignore[no-untyped-call]
    if not len(gone):
        absent = [name for name, finding in _kinds(audit).items() if _absent(finding)]
        if absent:
            return (f"Not looked for: {listed(absent)}; below is why.",)
        return ("No sample needs to go.",)
    left = audit.num_samples - len(gone)
    return (
        f"Without any of them {count(left)} samples are left, {percent(left / audit.num_samples)}; a sample can be "
        "of several kinds. Nothing is dropped by looking: audit.kept(…) and audit.drop(…) take what you choose.",
    )


def _found(audit: Audited) -> Section:
    cards = []
    for name, finding in _kinds(audit).items():
        absent = _absent(finding)
        value = "not looked for" if absent else count(len(finding))
        share = "" if absent else f"{percent(len(finding) / audit.num_samples)} of all; "
        cards.append(
            Card(
                name.capitalize(),
                value,
                f"{share}{sentence(finding.advice) if absent else finding.advice}",
            )
        )
    return Section("found", "What was found", cards=tuple(cards))


def _classes(counts: Tensor, remark: str, names: Names) -> Section:
    """Samples per class, the smallest first."""
    present = counts.nonzero()[:, 0]
    order, largest = present[counts[present].argsort(stable=True)], int(counts.max())
    rows = [
        Bar(names.of(k), count(int(counts[k])), (("kept", int(counts[k]) / largest),))
        for k in order.tolist()
    ]
    charts = class_charts(
        rows,
        ("Samples of each class", "The smallest classes", "The largest classes"),
        lambda some: f"Sizes of {len(some)} classes, from {some[0].value} to {some[-1].value}.",
        "The bars compare the classes with the largest.",
    )
    return Section("classes", "Classes", (f"{count(len(rows))} classes, {remark}.",), charts=charts)


def _findings(audit: Audited, dataset: Any, names: Names) -> Iterator[Section]:
    """A section for each kind that was found: galleries, and which classes are taken for which."""
    copies, suspects, off = audit.copies, audit.suspects, audit.off_target
    pairs = _pairs(copies) if dataset is not None else []
    chosen = [index for pair in pairs for index in pair]
    if dataset is not None:
        chosen += [*suspects.indices[:SHOWN].tolist(), *off.indices[:SHOWN].tolist()]
    samples = {} if dataset is None else read_samples(dataset, chosen)
    view = _View(audit, samples, names)
    sure = "the surest first"
    if pairs:
        said = f"{count(len(pairs))} of {count(len(copies))}, the most alike first. Left the one that stays."
        yield Section(
            "copies", "Near copies", (said,), tiles=tuple(map(view.pair, range(len(pairs))))
        )
    if len(suspects) and suspects.believed is not None and audit.labels is not None:
        tiles = view.singles(suspects, "doubt")
        said = f"{count(len(tiles))} of {count(len(suspects))} are shown, {sure}. {sentence(suspects.advice)}"
        charts = (_mistaken(suspects, audit.labels, names),)
        yield Section("suspects", "Suspect labels", (said,), charts=charts, tiles=tiles)
    if len(off) and dataset is not None:
        tiles = view.singles(off, "doubt")
        said = f"{count(len(tiles))} of {count(len(off))}, {sure}: they are not like the wanted samples."
        yield Section("off-target", "Off-target", (said,), tiles=tiles)


def _pairs(copies: Finding) -> list[tuple[int, int]]:
    """Near copies, each after the one that stays."""
    if copies.originals is None:
        return []
    both = zip(copies.originals[:PAIRS].tolist(), copies.indices[:PAIRS].tolist(), strict=True)
    return list(both)


def _mistaken(suspects: Finding, labels: Tensor, names: Names) -> Chart:
    """Which labels are believed to be which, the most frequent pairs."""
    assert suspects.believed is not None
    pairs, counts = torch.stack([labels[suspects.indices], suspects.believed]).unique(  # type: ignore[no-untyped-call]
        dim=1, return_counts=True
    )
    order = counts.argsort(descending=True, stable=True)
    shown, largest = order[:MISTAKES].tolist(), int(counts.max())
    rows = []
    for k in shown:
        given, believed = (names.of(label) for label in pairs[:, k].tolist())
        number = int(counts[k])
        whole, both = f"{given} → {believed}", f"{short(given, 12)} → {short(believed, 12)}"
        rows.append(Bar(whole, count(number), (("pruned", number / largest),), both))
    rest = int(counts[order[MISTAKES:]].sum())
    more = f" {count(rest)} more are of {count(len(order) - MISTAKES)} rarer pairs." if rest else ""
    said = listed(f"{row.shown}: {row.value}" for row in rows[:3])
    return Chart(
        "Label given → class believed",
        bars(rows, f"How often one class is taken for another; most often {said}."),
        f"A pair that is frequent can be a mistake in labelling that repeats, or two classes that are alike.{more}",
    )


class _View:
    """Tiles of the samples that were read."""

    def __init__(self, audit: Audited, samples: dict[int, Sample], names: Names) -> None:
        self.audit, self.samples, self.names = audit, samples, names

    def label(self, index: int) -> str:
        labels = self.audit.labels
        if labels is not None:
            return self.names.of(int(labels[index]))
        return self.names.of(self.samples[index].label)

    def pair(self, number: int) -> Tile:
        """A near copy beside the one that stays."""
        copies = self.audit.copies
        stays, goes = _pairs(copies)[number]
        pictures = (
            (self.samples[stays].picture, f"Sample {stays}, class {self.label(stays)}, stays"),
            (self.samples[goes].picture, f"Sample {goes}, class {self.label(goes)}, its near copy"),
        )
        facts = [
            ("stays", f"{stays} · {self.label(stays)}"),
            ("copy", f"{goes} · {self.label(goes)}"),
            ("cosine", f"{float(copies.confidence[number]):.4f}"),
        ]
        return Tile(pictures, tuple(facts))

    def singles(self, finding: Finding, measure: str) -> tuple[Tile, ...]:
        """Samples of a finding with their label, and the class that is believed if one is."""
        tiles = []
        for place, index in enumerate(finding.indices[:SHOWN].tolist()):
            if index not in self.samples:
                continue
            facts = [("sample", str(index)), ("label", self.label(index))]
            said = f"Sample {index}, label {self.label(index)}"
            if finding.believed is not None:
                believed = self.names.of(int(finding.believed[place]))
                facts.append(("believed", believed))
                said += f", believed {believed}"
            facts.append((measure, percent(float(finding.confidence[place]))))
            tiles.append(Tile(((self.samples[index].picture, said),), tuple(facts)))
        return tuple(tiles)
