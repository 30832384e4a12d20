"""Parts of a page that selections and audits have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from prunesampler.influence.headroom import COSTS, PAYS, advice
from prunesampler.page.charts import Bar, bars, meter
from prunesampler.page.layout import Chart, Section
from prunesampler.page.texts import count, sentence

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
