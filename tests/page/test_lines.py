"""Line charts: every point where it belongs."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.page.lines import LEFT, RIGHT, TALL, TOP, Line, lines

numbers = st.floats(0, 1e30)
shares = st.floats(0, 1)


def corners(drawing, look):
    """Ends of the line's pieces, as shares of the width and pixels from above."""
    pattern = rf'<line class="{look} curve" x1="([^"]+)%" y1="([^"]+)" x2="([^"]+)%" y2="([^"]+)"'
    return [tuple(map(float, found)) for found in re.findall(pattern, drawing)]


def test_points_are_in_their_places():
    line = Line("this rule", "kept", ((0.0, 0.0), (0.5, 2.0), (1.0, 4.0)))
    drawing = lines([line], "it rises", (0.5, 2.0))
    (left, low, middle, half), (_, _, right, high) = corners(drawing, "kept")
    assert (left, right) == pytest.approx((100 * LEFT, 100 * RIGHT))
    assert middle == pytest.approx(50 * (LEFT + RIGHT))
    assert (low, half, high) == pytest.approx((TOP + TALL, TOP + TALL / 2, TOP))
    assert (
        f'<circle class="pointer" cx="{50 * (LEFT + RIGHT):g}%" cy="{TOP + TALL / 2:g}"' in drawing
    )


def test_numbers_that_span_many_powers_are_on_a_scale_of_powers():
    line = Line("this rule", "kept", ((0.1, 1e-4), (0.5, 1e-2), (0.9, 1.0)))
    (_, low, _, half), (_, _, _, high) = corners(lines([line], "it rises"), "kept")
    assert low - half == pytest.approx(half - high, rel=0.1)


@given(st.lists(st.tuples(shares, numbers), min_size=1, max_size=12))
def test_nothing_leaves_the_drawing(points):
    line = Line("any", "kept", tuple(sorted(points)))
    drawing = lines([line], "any", points[0])
    for left, top, right, bottom in corners(drawing, "kept"):
        assert 100 * LEFT - 0.01 <= left <= right <= 100 * RIGHT + 0.01
        assert TOP - 0.01 <= min(top, bottom) <= max(top, bottom) <= TOP + TALL + 0.01
    assert not re.search(r"nan|inf", drawing)


def test_names_are_data_and_none_is_an_error():
    assert "&lt;b&gt;" in lines([Line("<b>", "kept", ((0.1, 1.0),))], "<i>")
    with pytest.raises(ValueError, match="nothing to draw"):
        lines([Line("none", "kept", ())], "none", (0.1, math.nan))
