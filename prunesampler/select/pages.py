"""The page of a selection: what was decided, what it is predicted to cost, and which samples it is about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from prunesampler.influence.headroom import headroom
from prunesampler.page.charts import Bar, bars
from prunesampler.page.layout import Card, Chart, Page, Section
from prunesampler.page.texts import count, figure, percent
from prunesampler.select.measured import (
    Measures,
    Split,
    classes_section,
    distributions_section,
    gallery_sections,
)
from prunesampler.select.samples import Names
from prunesampler.select.sections import headroom_section
from prunesampler.select.verdict import Compared, compare
from prunesampler.solve.budget import Budget

STAGES = ("measuring", "curvature", "solving", "certificate")


class Selected(Split, Protocol):
    """What a page asks of `prunesampler.select.selection.Selection`, where all of it is explained."""

    @property
    def shift(self) -> float:
        """Norm of the first-order shift."""

    @property
    def newton_shift(self) -> float:
        """Norm of the Newton shift."""

    @property
    def bound(self) -> float | None:
        """Proved bound on the shift."""

    @property
    def curvature_share(self) -> float | None:
        """Smallest share of the curvature kept in any direction."""

    @property
    def budget(self) -> Budget:
        """The budget."""

    @property
    def metadata(self) -> dict[str, Any]:
        """Facts by name."""

    @property
    def ratio(self) -> float:
        """The shift as a share of a random set's."""

    @property
    def verdict(self) -> str:
        """Whether the set is better than a random one, in words."""

    @property
    def certificate(self) -> str:
        """What is proved, predicted and neither."""


def selection_page(selection: Selected, dataset: Any, measures: Measures | None) -> Page:
    """The page of a selection.

    Args:
        selection: The selection.
        dataset: The dataset that it is of, or None.
        measures: What scores know of the samples, or None.
    """
    names, sections = Names.in_dataset(dataset), [_decision(selection)]
    share = selection.metadata.get("headroom")
    if share is None and measures is not None:
        share = headroom(measures.errors)
    if share is not None:
        sections.append(headroom_section(float(share)))
    if measures is not None:
        if measures.labels is not None:
            sections.append(classes_section(selection, measures.labels, names))
        sections.append(distributions_section(selection, measures))
    if dataset is not None:
        sections += gallery_sections(selection, dataset, measures, names)
    sections.append(_settings(selection))
    wanting = {"scores=": measures, "dataset=": dataset}
    absent = [name for name, given in wanting.items() if given is None]
    shown = {"scores=": "classes and distributions", "dataset=": "samples"}
    missing = " and ".join(f"{shown[name]} are shown with {name}" for name in absent)
    return Page(
        "Selection",
        _headline(selection),
        (selection.verdict,),
        sections,
        f"Of this selection, {missing}." if missing else "",
    )


def _headline(selection: Selected) -> tuple[str, ...]:
    kept, n, ratio = len(selection.kept), selection.num_samples, selection.ratio
    head = ("", percent(kept / n), f" of {count(n)} samples stay")
    if not math.isfinite(ratio):
        return (*head[:2], f"{head[2]}.")
    end = " as far as with a random choice."
    return (*head[:2], f"{head[2]}, and the layer is predicted to move ", percent(ratio), end)


def _decision(selection: Selected) -> Section:
    """What was decided, and what it is predicted to cost."""
    pairs = compare(selection.shift, selection.newton_shift, selection.metadata)
    facts = [line.partition(": ") for line in selection.certificate.splitlines()]
    return Section(
        "decision",
        "What was decided, and its predicted cost",
        cards=tuple(_cards(selection)),
        charts=_against_random(pairs),
        facts=tuple((name.capitalize(), said) for name, _, said in facts),
    )


def _cards(selection: Selected) -> Iterator[Card]:
    kept, n, pruned = len(selection.kept), selection.num_samples, len(selection.pruned)
    yield Card("Samples kept", count(kept), f"of {count(n)}; {count(pruned)} are left out")
    facts = selection.metadata
    shifts = [
        ("Predicted shift, first order", selection.shift, facts.get("random_shift")),
        ("Predicted shift, Newton", selection.newton_shift, facts.get("random_newton_shift")),
    ]
    for name, own, random in shifts:
        if not math.isnan(own):
            beside = "" if random is None else f"a random set of as many: {figure(random)}"
            yield Card(name, figure(own), beside)
    if selection.bound is not None:
        note = "an upper bound on the shift; its conditions are below"
        yield Card("Proved", figure(selection.bound), note)
    share = selection.curvature_share
    if share is not None and not math.isnan(share):
        yield Card("Curvature kept", percent(share), "in the direction that keeps least")
    seconds = [(stage, facts.get(f"{stage}_seconds")) for stage in STAGES]
    known = [(stage, took) for stage, took in seconds if took is not None]
    if known:
        parts = ", ".join(f"{stage} {figure(took)} s" for stage, took in known)
        yield Card("Time it took", f"{figure(sum(took for _, took in known))} s", parts)


def _against_random(pairs: list[Compared]) -> tuple[Chart, ...]:
    """Bars of the shifts of the set and of a random one, on one scale."""
    largest = max((max(pair.own, pair.random) for pair in pairs), default=0.0)
    scale = largest if math.isfinite(largest) and largest > 0 else 1.0
    charts = []
    for pair in pairs:
        rows = [
            Bar("this set", figure(pair.own), (("kept", pair.own / scale),)),
            Bar("a random set", figure(pair.random), (("other", pair.random / scale),)),
        ]
        said = f"{figure(pair.own)} {pair.how}, and {figure(pair.random)} of a random set"
        charts.append(
            Chart(
                f"How far the layer moves, {pair.how}",
                bars(rows, f"Predicted shift: {said}."),
                f"The shift of this set is {percent(pair.ratio)} of that of a random set of the same size.",
            )
        )
    return tuple(charts)


def _settings(selection: Selected) -> Section:
    """Budget and facts."""
    facts = [("Budget", str(selection.budget)), *_facts(selection.metadata)]
    return Section("settings", "How it was made", facts=tuple(facts))


def _facts(metadata: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in metadata.items():
        if value is not None:
            text = figure(value) if isinstance(value, float) else str(value)
            yield str(name).replace("_", " "), text
