"""The page of a selection: what was decided, what it is predicted to cost, and which samples it is about."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from prunesampler.select.moment import Moment, changes_section, plan_section
from prunesampler.select.samples import Names
from prunesampler.select.sections import frontier_section, headroom_section
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


@dataclass(frozen=True)
class Beside:
    """What is known beside a selection, and shown on its page.

    Args:
        dataset: The dataset that it is of, or None.
        measures: What scores know of the samples, or None.
        frontier: Further selections from the same scores.
        moment: When in a run it was made, or None.

    Examples:
        >>> Beside(["a", "b"]).measures is None
        True
    """

    dataset: Any = None
    measures: Measures | None = None
    frontier: Sequence[Selected] = ()
    moment: Moment | None = None


def selection_page(selection: Selected, beside: Beside) -> Page:
    """The page of a selection.

    Args:
        selection: The selection.
        beside: What else is known.
    """
    return Page(
        "Selection" if beside.moment is None else f"Selection · {beside.moment.title}",
        _headline(selection),
        (selection.verdict,),
        list(_sections(selection, beside)),
        _missing(beside),
    )


def _sections(selection: Selected, beside: Beside) -> Iterator[Section]:
    """The parts of the page, from the decision to how it was made."""
    measures, moment = beside.measures, beside.moment
    names = Names.in_dataset(beside.dataset)
    yield _decision(selection, moment)
    share = selection.metadata.get("headroom")
    if share is None and measures is not None:
        share = headroom(measures.errors)
    if share is not None:
        yield headroom_section(float(share))
    frontier = _frontier(selection, beside.frontier)
    if frontier is not None:
        yield frontier
    if measures is not None:
        if measures.labels is not None:
            yield classes_section(selection, measures.labels, names)
        yield distributions_section(selection, measures)
    if moment is not None and moment.before is not None:
        yield changes_section(selection, moment.before)
    if beside.dataset is not None:
        yield from gallery_sections(selection, beside.dataset, measures, names)
    plan = None if moment is None else plan_section(moment, selection.num_samples)
    if plan is not None:
        yield plan
    yield _settings(selection)


def _missing(beside: Beside) -> str:
    """What would be shown with more arguments."""
    wanting = {"scores=": beside.measures, "dataset=": beside.dataset}
    shown = {"scores=": "classes and distributions", "dataset=": "samples"}
    absent = [
        f"{shown[name]} are shown with {name}" for name, given in wanting.items() if given is None
    ]
    return f"Of this selection, {' and '.join(absent)}." if absent else ""


def _frontier(selection: Selected, others: Sequence[Selected]) -> Section | None:
    """The shifts of further selections and random sets, beside that of this one."""
    if not others:
        return None
    every = [*others, selection]
    share = [len(each.pruned) / each.num_samples for each in every]
    own = [(at, each.shift) for at, each in zip(share, every, strict=True)]
    random = [
        (at, float(each.metadata["random_shift"]))
        for at, each in zip(share, every, strict=True)
        if each.metadata.get("random_shift") is not None
    ]
    return frontier_section(own, random, own[-1])


def _headline(selection: Selected) -> tuple[str, ...]:
    kept, n, ratio = len(selection.kept), selection.num_samples, selection.ratio
    head = ("", percent(kept / n), f" of {count(n)} samples stay")
    if not math.isfinite(ratio):
        return (*head[:2], f"{head[2]}.")
    end = " as far as with a random choice."
    return (*head[:2], f"{head[2]}, and the layer is predicted to move ", percent(ratio), end)


def _decision(selection: Selected, moment: Moment | None) -> Section:
    """What was decided, and what it is predicted to cost."""
    pairs = compare(selection.shift, selection.newton_shift, selection.metadata)
    known = not math.isnan(selection.shift)  # of what is chosen by errors nothing is predicted
    lines = selection.certificate.splitlines() if known else []
    facts = [line.partition(": ") for line in lines]
    return Section(
        "decision",
        "What was decided, and its predicted cost",
        cards=tuple(_cards(selection, moment)),
        charts=_against_random(pairs),
        facts=tuple((name.capitalize(), said) for name, _, said in facts),
    )


def _cards(selection: Selected, moment: Moment | None) -> Iterator[Card]:
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
    yield from _time(selection, moment)


def _time(selection: Selected, moment: Moment | None) -> Iterator[Card]:
    """The time that selecting took, by its stages and beside that of an epoch, as far as it is known."""
    # A set that was drawn again comes from scores that were measured for an earlier one.
    stages = ("solving",) if math.isnan(selection.newton_shift) else STAGES
    seconds = [(stage, selection.metadata.get(f"{stage}_seconds")) for stage in stages]
    known = [(stage, took) for stage, took in seconds if took is not None]
    parts = ", ".join(f"{stage} {figure(took)} s" for stage, took in known)
    if moment is not None:
        note = "; ".join(filter(None, (moment.share, parts)))
        yield Card("Time it took", f"{figure(moment.seconds)} s", note)
    elif known:
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
