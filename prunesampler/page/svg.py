"""A small writer of SVG. Places and widths are shares of the chart's width, so that it fits a phone and its text stays large."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from prunesampler.page.texts import clean, short, whole


def drawing(marks: Iterable[str], alternative: str, height: float) -> str:
    """A chart as inline SVG, as wide as there is room.

    Args:
        marks: Its parts, from the back to the front.
        alternative: What one sees, for those who do not.
        height: In pixels.

    Examples:
        >>> drawing([], "nothing", 10)
        '<svg class="chart" role="img" aria-label="nothing" width="100%" height="10"></svg>'
    """
    label = escape(clean(alternative))
    return (
        f'<svg class="chart" role="img" aria-label="{label}" width="100%" height="{height:g}">'
        f"{''.join(marks)}</svg>"
    )


def box(left: float, top: float, width: float, height: float, look: str, tooltip: str = "") -> str:
    """A rectangle.

    Args:
        left: Place of its left side, as a share of the width.
        top: In pixels from above.
        width: As a share of the width.
        height: In pixels.
        look: Class that the style sheet gives a colour.
        tooltip: Text that a pointer shows.

    Examples:
        >>> box(0.25, 3, 0.5, 10, "kept")
        '<rect class="kept" x="25%" y="3" width="50%" height="10"></rect>'
    """
    return (
        f'<rect class="{look}" x="{100 * left:.6g}%" y="{top:.5g}" width="{100 * width:.6g}%" '
        f'height="{height:.5g}">{_tooltip(tooltip)}</rect>'
    )


def line(left: float, top: float, right: float, bottom: float, look: str) -> str:
    """A line; left and right are shares of the width, top and bottom pixels.

    Examples:
        >>> line(0, 5, 1, 5, "axis")
        '<line class="axis" x1="0%" y1="5" x2="100%" y2="5"></line>'
    """
    return (
        f'<line class="{look}" x1="{100 * left:.6g}%" y1="{top:.5g}" x2="{100 * right:.6g}%" '
        f'y2="{bottom:.5g}"></line>'
    )


def words(
    left: float, baseline: float, text: str, look: str = "", *, width: int = 60, instead: str = ""
) -> str:
    """A text that begins at a place, or ends at the right edge, or else has its middle there.

    Args:
        left: Place as a share of the width: at 0 the text begins, at 1 it ends.
        baseline: In pixels from above.
        text: Any text; what is cut can be read in a tooltip.
        look: Class that the style sheet gives a colour.
        width: Letters that are shown at most.
        instead: A shorter text to show, by default the beginning of the text.

    Examples:
        >>> words(1, 12, "<b>", "quiet")
        '<text class="quiet" x="100%" y="12" text-anchor="end">&lt;b&gt;</text>'
    """
    anchor = "start" if left <= 0.02 else "end" if left >= 0.98 else "middle"
    shown = short(instead or text, width)
    cut = _tooltip(text) if shown != clean(text).strip() else ""
    return (
        f'<text class="{look}" x="{100 * left:.6g}%" y="{baseline:.5g}" text-anchor="{anchor}">'
        f"{escape(shown)}{cut}</text>"
    )


def dot(left: float, top: float, look: str) -> str:
    """A round mark; left is a share of the width, top in pixels.

    Examples:
        >>> dot(0.5, 8, "mark")
        '<circle class="mark" cx="50%" cy="8" r="7"></circle>'
    """
    return f'<circle class="{look}" cx="{100 * left:.6g}%" cy="{top:.5g}" r="7"></circle>'


def _tooltip(text: str) -> str:
    return f"<title>{escape(whole(text))}</title>" if text else ""
