import math
import warnings
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prunesampler.page.charts import BINS, Axis, Bar, Group, bars, histogram, meter


def boxes(drawing, look):
    """Left side and width of each rectangle, and its top and height."""
    found = [box for box in ElementTree.fromstring(drawing) if box.get("class") == look]
    names = ("x", "width", "y", "height")
    return [tuple(float(box.get(name).rstrip("%")) for name in names) for box in found]


def test_bars_are_as_long_as_their_shares():
    rows = [Bar("a", "1", (("kept", 0.25), ("gone", 0.75))), Bar("b", "0", (("kept", 0.0),))]
    drawing = bars(rows, "two", mark=0.5)
    assert [box[:2] for box in boxes(drawing, "kept")] == [(0, 25)]
    assert [box[:2] for box in boxes(drawing, "gone")] == [(25, 75)]
    marks = [line for line in ElementTree.fromstring(drawing) if line.get("class") == "mark"]
    assert [line.get("x1") for line in marks] == ["50%", "50%"]


def test_bars_never_leave_the_chart():
    drawing = bars([Bar("a", "", (("kept", 7.0), ("gone", math.inf), ("kept", -1.0)))], "one")
    assert boxes(drawing, "kept")[0][:2] == (0, 100)
    assert len(boxes(drawing, "kept") + boxes(drawing, "gone")) == 1


def test_a_histogram_shows_shares_of_each_group():
    upper = Group("kept: 4", "kept", np.array([0.0, 0.0, 1.0, 1.0]))
    lower = Group("pruned: 1", "pruned", np.array([0.5, math.nan]))
    drawing = histogram(upper, lower, "two groups")
    kept, pruned = boxes(drawing, "kept"), boxes(drawing, "pruned")
    assert len(kept) == 2
    assert len(pruned) == 1
    assert pruned[0][3] == pytest.approx(2 * kept[0][3]) == pytest.approx(2 * kept[1][3])
    assert pruned[0][2] > kept[0][2] + kept[0][3] - 1
    assert "50\N{NO-BREAK SPACE}% of the kept" in drawing


def test_numbers_far_out_do_not_squeeze_the_others():
    values = np.append(np.linspace(0, 1, 10_000), 1e9)
    axis = Axis.over(values)
    assert not axis.powers
    assert axis.edges[-1] < 1.1


def test_an_axis_over_many_powers_of_ten_is_logarithmic():
    axis = Axis.over(10.0 ** np.linspace(-6, 0, 1000))
    assert axis.powers
    assert axis.ticks()[-1] <= 1
    assert 2 <= len(axis.ticks()) <= 6
    assert axis.place(1e-3) == pytest.approx(0.5, abs=0.02)


@given(arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1e300)))
def test_any_numbers_can_be_drawn(values):
    drawing = histogram(Group("a", "kept", values), Group("b", "pruned", values[:0]), "one group")
    found = boxes(drawing, "kept")
    assert 1 <= len(found) <= BINS
    assert all(left >= 0 and left + width <= 100.001 for left, width, _, _ in found)
    ticks = Axis.over(values).ticks()
    assert len(ticks) <= 6
    assert all(-1e-9 <= Axis.over(values).place(tick) <= 1 + 1e-9 for tick in ticks)


def test_nothing_finite_is_an_error():
    with pytest.raises(ValueError, match="neither group has a finite number"):
        histogram(Group("a", "kept", np.array([math.nan])), Group("b", "pruned", np.array([])), "")


@pytest.mark.parametrize(
    ("value", "place"), [(0.5, "0%"), (0.75, "50%"), (9.0, "100%"), (-1, "0%")]
)
def test_a_meter_points_to_its_number(value, place):
    drawing = meter(value, 0.5, 1.0, [("track", 0.8, "low"), ("good", 1.0, "high")], "a scale")
    assert f'cx="{place}"' in drawing


def test_a_meter_of_nothing_points_nowhere():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawing = meter(math.nan, 0.5, 1.0, [("good", 1.0, "high")], "a scale")
    assert "circle" not in drawing
