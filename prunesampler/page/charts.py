"""Charts: numbers in, SVG out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prunesampler.page import svg
from prunesampler.page.texts import figure, percent

ROW, BAR = 40, 12
"""Heights in pixels: of a row with its text, and of the bar in it."""
BINS, HALF = 32, 84
"""Bins of a histogram, and the height of each of its halves in pixels."""
DECADES = 100.0
"""Above this ratio of large to small numbers an axis has powers of ten."""


@dataclass(frozen=True)
class Bar:
    """A row of a bar chart.

    Args:
        name: What it is of; any text.
        value: What is written at its end.
        parts: Its pieces from left to right: the look of each, and its length as a share of the width.
        shown: A shorter name to show, with the whole one in a tooltip; by default the name's beginning.

    Examples:
        >>> Bar("cat", "60 % of 50", (("kept", 0.6),)).value
        '60 % of 50'
    """

    name: str
    value: str
    parts: tuple[tuple[str, float], ...]
    shown: str = ""


def bars(rows: Sequence[Bar], alternative: str, mark: float | None = None) -> str:
    """Horizontal bars, each below its name and value.

    Args:
        rows: The bars from above.
        alternative: What one sees, for those who do not.
        mark: Place of a line across all bars to compare them with, as a share of the width, or None.

    Examples:
        >>> bars([Bar("cat", "60 %", (("kept", 0.6),))], "60 % of the cats are kept").count("<rect")
        2
    """
    marks = []
    for number, row in enumerate(rows):
        top = ROW * number
        marks.append(svg.words(0, top + 14, row.name, "name", width=26, instead=row.shown))
        marks.append(svg.words(1, top + 14, row.value, "quiet"))
        marks.append(svg.box(0, top + 21, 1, BAR, "track"))
        left = 0.0
        for look, length in row.parts:
            length = min(max(length, 0.0), 1.0 - left)
            if length > 0:
                marks.append(svg.box(left, top + 21, length, BAR, look))
            left += length
        if mark is not None:
            marks.append(svg.line(mark, top + 18, mark, top + 21 + BAR + 3, "mark"))
    return svg.drawing(marks, alternative, ROW * len(rows))


def meter(
    value: float, low: float, high: float, zones: Sequence[tuple[str, float, str]], alternative: str
) -> str:
    """One number on a scale with zones.

    Args:
        value: The number; no mark is drawn for NaN, and outside the scale it is at its end.
        low: Where the scale begins.
        high: Where it ends.
        zones: From left to right the look of each, where it ends, and its name.
        alternative: What one sees, for those who do not.

    Examples:
        >>> zones = [("poor", 0.8, "costs"), ("good", 1.0, "pays")]
        >>> meter(0.9, 0.5, 1.0, zones, "0.9 of 1").count("<circle")
        1
    """

    def place(number: float) -> float:
        return min(max((number - low) / (high - low), 0.0), 1.0)

    marks, start = [], low
    for look, end, name in zones:
        left, right = place(start), place(end)
        marks.append(svg.box(left, 30, right - left - 0.004, 16, look, name))
        marks.append(svg.words(left, 64, f"{start:g}", "quiet"))
        marks.append(svg.words((left + right) / 2, 86, name))
        start = end
    marks.append(svg.words(1, 64, f"{high:g}", "quiet"))
    if not math.isnan(value):
        at = place(value)
        marks += [svg.dot(at, 38, "pointer"), svg.words(at, 18, f"{value:.2f}", "value")]
    return svg.drawing(marks, alternative, 92)


@dataclass(frozen=True)
class Group:
    """Numbers of one kind in a histogram.

    Args:
        name: What they are of.
        look: Class that the style sheet gives a colour.
        values: The numbers, shape (k,); those that are not finite are left out.

    Examples:
        >>> Group("kept", "kept", np.array([1.0, math.nan])).finite().tolist()
        [1.0]
    """

    name: str
    look: str
    values: NDArray[np.float64]

    def finite(self) -> NDArray[np.float64]:
        """The numbers without those that are not finite."""
        return self.values[np.isfinite(self.values)]


def histogram(upper: Group, lower: Group, alternative: str) -> str:
    """Two groups of numbers of at least 0 on one axis, one above it and one below, each as shares of itself.

    Args:
        upper: The group above the axis.
        lower: The group below it.
        alternative: What one sees, for those who do not.

    Raises:
        ValueError: If neither group has a finite number.

    Examples:
        >>> groups = Group("kept", "kept", np.array([1.0, 2.0])), Group("pruned", "pruned", np.array([0.1]))
        >>> histogram(*groups, "the kept are larger").count("<rect")
        3
    """
    together = np.concatenate([upper.finite(), lower.finite()])
    if not len(together):
        raise ValueError("neither group has a finite number, so there is nothing to draw")
    axis = Axis.over(together)
    heights = [_shares(group.finite(), axis) for group in (upper, lower)]
    tallest = max(float(height.max()) for height in heights)
    middle, marks = 24 + HALF, []
    for group, height, above in zip((upper, lower), heights, (True, False), strict=True):
        for place in np.flatnonzero(height):
            tall = max(HALF * height[place] / tallest, 1.0)
            low, high = axis.edges[place], axis.edges[place + 1]
            said = f"{figure(low)} to {figure(high)}: {percent(height[place])} of the {group.look}"
            top = middle - tall - 0.5 if above else middle + 0.5
            marks.append(
                svg.box(place / BINS + 0.001, top, 1 / BINS - 0.002, tall, group.look, said)
            )
    marks.append(svg.line(0, middle, 1, middle, "axis"))
    marks.append(svg.words(0, 14, upper.name, f"{upper.look} value"))
    marks.append(svg.words(0, middle + HALF + 18, lower.name, f"{lower.look} value"))
    base = middle + HALF + 38
    for number in axis.ticks():
        at = axis.place(number)
        marks.append(svg.line(at, middle - 3, at, middle + 3, "axis"))
        marks.append(svg.words(at, base, f"{number:g}", "quiet"))
    return svg.drawing(marks, alternative, base + 8)


def _shares(values: NDArray[np.float64], axis: Axis) -> NDArray[np.float64]:
    """Share of the values in each bin, shape (BINS,); those outside are in the outermost."""
    held = np.clip(values, axis.edges[0], axis.edges[-1])
    counts, _ = np.histogram(held, bins=axis.edges)
    return counts / max(len(values), 1)


@dataclass(frozen=True)
class Axis:
    """Where numbers lie from left to right, evenly or by their logarithm.

    Args:
        edges: Edges of the bins, ascending, shape (BINS + 1,).
        powers: Whether equal steps are equal ratios.

    Examples:
        >>> Axis.over(np.array([0.0, 0.5, 1.0])).place(0.5)
        0.5
    """

    edges: NDArray[np.float64]
    powers: bool

    @classmethod
    def over(cls, values: NDArray[np.float64]) -> Axis:
        """An axis for these finite numbers; one with powers of ten where they span many.

        A few far out do not squeeze the others: the outermost bins hold all that is beyond them.
        """
        positive = values[values > 0]
        if len(positive) > len(values) / 2:
            low, usual, high = np.quantile(positive, [0.005, 0.02, 0.999])
            if high > DECADES * usual:
                low = max(low, high * 1e-8)
                return cls(np.geomspace(low, high, BINS + 1), powers=True)
        low, high, largest = min(values.min(), 0.0), np.quantile(values, 0.999), values.max()
        high = largest if largest < 1.25 * high else high
        high = high if high - low > 1e-30 else low + 1.0
        return cls(np.linspace(low, high, BINS + 1), powers=False)

    def place(self, number: float) -> float:
        """Where a number lies, from 0 at the left to 1."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        if self.powers:
            return math.log(number / low) / math.log(high / low)
        return (number - low) / (high - low)

    def ticks(self) -> list[float]:
        """A few round numbers inside the axis, at most six."""
        low, high = float(self.edges[0]), float(self.edges[-1])
        if self.powers:
            first, last = math.ceil(math.log10(low)), math.floor(math.log10(high))
            step = max(1, math.ceil((last - first + 1) / 5))
            return [10.0**power for power in range(first, last + 1, step)]
        size = 10 ** math.floor(math.log10((high - low) / 2))
        step = next(size * k for k in (1, 2, 5, 10) if (high - low) / (size * k) <= 5)
        return [step * k for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
