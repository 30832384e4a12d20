"""Line charts: points in, SVG out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from prunesampler.page import svg
from prunesampler.page.charts import DECADES, Axis
from prunesampler.page.texts import figure, percent

TOP, TALL = 40, 180
"""Pixels above the drawing, where its lines are named, and height of the drawing."""
LEFT, RIGHT = 0.14, 0.97
"""Where the drawing begins and ends, as shares of the width; the numbers of its heights are to the left."""


@dataclass(frozen=True)
class Line:
    """Points that a line connects.

    Args:
        name: What it shows.
        look: Class that the style sheet gives a colour.
        points: Places from left to right, each with its height, all finite.

    Examples:
        >>> Line("this rule", "kept", ((0.1, 2.0), (0.2, 5.0))).points[1]
        (0.2, 5.0)
    """

    name: str
    look: str
    points: tuple[tuple[float, float], ...]


def lines(held: Sequence[Line], alternative: str, chosen: tuple[float, float] | None = None) -> str:
    """Lines over shares from 0 to 1, heights at least 0 on one axis.

    Args:
        held: The lines, one of which has a point.
        alternative: What one sees, for those who do not.
        chosen: A point to mark, or None.

    Raises:
        ValueError: If there is no point.

    Examples:
        >>> drawn = lines([Line("this rule", "kept", ((0.1, 2.0), (0.2, 5.0)))], "it rises", (0.2, 5.0))
        >>> drawn.count("<circle"), drawn.count('class="kept curve"')
        (1, 1)
    """
    heights = [height for part in held for _, height in part.points]
    if not heights:
        raise ValueError("no line has a point, so there is nothing to draw")
    marked = [] if chosen is None else [chosen[1]]
    axis = _axis([*heights, *marked])
    marks = [*_ground(axis), *_names(held)]
    for part in held:
        at = [(_across(share), _down(axis, height)) for share, height in part.points]
        for (left, top), (right, bottom) in pairwise(at):
            marks.append(svg.line(left, top, right, bottom, f"{part.look} curve"))
        marks += [svg.box(x - 0.004, y - 3, 0.008, 6, part.look) for x, y in at]
    if chosen is not None:
        x, y = _across(chosen[0]), _down(axis, chosen[1])
        marks += [svg.dot(x, y, "pointer")]
    return svg.drawing(marks, alternative, TOP + TALL + 30)


def _axis(heights: Sequence[float]) -> Axis:
    """From zero to the largest height, or by powers of ten from the smallest where they span many."""
    largest, smallest = max(heights), min((h for h in heights if h > 0), default=0.0)
    if smallest and largest > DECADES * smallest:
        return Axis(np.geomspace(max(smallest, 1e-8 * largest), largest, 2), powers=True)
    return Axis(np.linspace(0.0, largest if largest > 1e-30 else 1.0, 2), powers=False)


def _across(share: float) -> float:
    return LEFT + (RIGHT - LEFT) * share


def _down(axis: Axis, height: float) -> float:
    """Pixels from above; what is beyond the axis, or nothing on one of powers, lies on its edge."""
    low, high = float(axis.edges[0]), float(axis.edges[-1])
    return TOP + TALL * (1 - axis.place(min(max(height, low), high)))


def _ground(axis: Axis) -> list[str]:
    """Both axes with their numbers."""
    bottom, found = TOP + TALL, []
    for number in axis.ticks():
        y = _down(axis, number)
        found.append(svg.line(LEFT, y, RIGHT, y, "grid"))
        found.append(svg.words(0, y + 4, figure(number), "quiet"))
    found.append(svg.line(LEFT, bottom, RIGHT, bottom, "axis"))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        found.append(svg.words(min(_across(share), 0.97), bottom + 20, percent(share), "quiet"))
    return found


def _names(held: Sequence[Line]) -> list[str]:
    """The names of the lines in their colours, side by side."""
    width = (RIGHT - LEFT) / len(held)
    return [
        svg.words(0 if k == 0 else LEFT + width * (k + 0.5), 16, part.name, f"{part.look} value")
        for k, part in enumerate(held)
    ]
