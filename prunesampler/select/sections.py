"""Parts of a page that selections and audits have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunesampler.influence.headroom import COSTS, PAYS, advice
from prunesampler.page.charts import Bar, bars, meter
from prunesampler.page.layout import Chart, Section
from prunesampler.page.lines import Line, lines
from prunesampler.page.texts import count, figure, percent, sentence

HALF, ONE = 12, 6
"""Bars in each of two charts of classes; of more than that the first and the last are shown. And in a single chart."""


def headroom_section(share: float) -> Section:
    """What the headroom is, and the advice that follows.

    Args:
        share: The headroom, or NaN if it is unknown.

    Examples:
        >>> headroom_section(0.7).title
        'Headroom'
    """
    said = advice(share)
    zones = [
        ("track", COSTS, "fewer epochs are better"),
        ("fair", PAYS, "may pay"),
        ("good", 1.0, "can pay"),
    ]
    chart = Chart(
        "What the harder half of the samples holds of the gradient",
        meter(share, 0.5, 1.0, zones, f"A scale from 0.5 to 1: {said}."),
        f"Below {COSTS} all samples pull at the layer, so training fewer epochs on all of them saves the same time "
        f"at a lower price. Above {PAYS} the easier half hardly pulls.",
    )
    meaning = (
        f"{sentence(said)} It tells whether leaving samples out can save time where a whole network is "
        "trained from scratch."
    )
    return Section("headroom", "Headroom", (meaning,), charts=(chart,))


def frontier_section(
    points: Sequence[tuple[float, float]],
    random: Sequence[tuple[float, float]],
    chosen: tuple[float, float],
) -> Section | None:
    """The shift against the share that is pruned, with the chosen point; None where no shift is known.

    Args:
        points: Shares pruned, each with the predicted shift of its set.
        random: The same of random sets.
        chosen: That of the selection which a page is of.

    Examples:
        >>> frontier_section([(0.1, 1.0), (0.5, 3.0)], [(0.1, 4.0)], (0.5, 3.0)).title
        'Frontier'
        >>> frontier_section([], [], (0.5, 3.0)) is None
        True
    """
    known, drawn = (_finite(part) for part in (points, random))
    if not known:
        return None
    held = [Line("chosen sets", "kept", known), Line("random sets", "other", drawn)]
    ends = " to ".join(
        f"{figure(shift)} at {percent(share)}" for share, shift in (known[0], known[-1])
    )
    mark = chosen if math.isfinite(chosen[1]) else None
    chart = Chart(
        "Predicted shift against the share that is pruned",
        lines([line for line in held if line.points], f"The shift of chosen sets: {ends}.", mark),
        f"The dot is this selection, {percent(chosen[0])} pruned. Where the lines meet, choosing gains nothing.",
    )
    return Section(
        "frontier", "Frontier", ("What pruning more, or less, would cost.",), charts=(chart,)
    )


def _finite(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points of finite heights, from left to right."""
    return tuple(sorted(point for point in points if math.isfinite(point[1])))


def class_charts(
    rows: Sequence[Bar],
    titles: tuple[str, str, str],
    alternative: Callable[[Sequence[Bar]], str],
    caption: str,
    mark: float | None = None,
) -> tuple[Chart, ...]:
    """Bars of classes in order: all of them in one chart or two, or where there are many the extremes.

    Args:
        rows: One bar for each class, in order.
        titles: Of a chart of all, and of the charts of the first and of the last.
        alternative: The alternative text for some bars.
        caption: What one sees.
        mark: See `prunesampler.page.charts.bars`.

    Examples:
        >>> rows = [Bar(str(k), "", ()) for k in range(100)]
        >>> charts = class_charts(rows, ("all", "first", "last"), lambda some: f"{len(some)} bars", "")
        >>> [chart.title for chart in charts], charts[1].caption
        (['first', 'last'], ' 76 of 100 classes lie between and are not shown.')
    """
    if len(rows) <= ONE:
        return (Chart(titles[0], bars(rows, alternative(rows), mark), caption),)
    hidden = len(rows) - 2 * HALF
    split = HALF if hidden > 0 else math.ceil(len(rows) / 2)
    between = f" {count(hidden)} of {count(len(rows))} classes lie between and are not shown."
    parts = (rows[:split], caption), (rows[-split:], between if hidden > 0 else "")
    return tuple(
        Chart(title, bars(some, alternative(some), mark), said)
        for title, (some, said) in zip(titles[1:], parts, strict=True)
    )
