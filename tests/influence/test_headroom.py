import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.influence.headroom import advice, headroom


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=40))
def test_it_is_the_share_of_the_hardest_half(values):
    found = headroom(torch.tensor(values))
    ordered, half = sorted(values, reverse=True), len(values) / 2
    if not sum(values):
        assert math.isnan(found)
        return
    held = sum(ordered[: math.floor(half)]) + (half % 1) * ordered[math.floor(half)]
    assert found == pytest.approx(held / sum(values))
    assert 0.5 - 1e-9 <= found <= 1 + 1e-9


def test_known_answers():
    assert headroom(torch.ones(7)) == pytest.approx(0.5)
    assert headroom(torch.tensor([0.0, 0.0, 0.0, 1.0])) == 1.0
    assert headroom(torch.tensor([1.0])) == 0.5
    assert headroom(torch.tensor([1.0, float("nan"), 3.0, float("nan")])) == 0.75
    assert headroom(torch.tensor([3.0, 1.0], dtype=torch.float16)) == 0.75
    for nothing in (torch.zeros(5), torch.full((5,), math.nan), torch.zeros(0)):
        assert math.isnan(headroom(nothing))


def test_it_does_not_depend_on_units_or_order():
    errors = torch.rand(101)
    whole = headroom(errors)
    assert headroom(1e-7 * errors) == pytest.approx(whole, rel=1e-5)
    assert headroom(errors.flip(0)) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("share", "says"),
    [
        (0.95, "can pay"),
        (0.85, "may pay a little"),
        (0.7, "fewer epochs on all"),
        (math.nan, "no sample has a gradient"),
    ],
)
def test_what_it_advises(share, says):
    assert says in advice(share)
    if share == share:
        assert f"{share:.2f}" in advice(share)
