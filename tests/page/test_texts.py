import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesampler.page import svg
from prunesampler.page.texts import clean, figure, percent, short, whole

ANY = st.text(st.characters(), max_size=200)
"""With control characters, lone surrogates and all."""


@given(ANY)
def test_any_text_can_be_encoded_and_stands_in_xml(text):
    assert len(clean(text).encode()) >= len(text)
    found = ElementTree.fromstring(svg.words(0, 1, text, width=10))
    assert found.text == (short(text, 10) or None)
    ElementTree.fromstring(svg.box(0, 0, 1, 1, "kept", text))
    ElementTree.fromstring(svg.drawing([], text, 10))


@given(ANY, st.integers(1, 40))
def test_short_texts_are_short_and_begin_as_the_whole(text, width):
    shown = short(text, width)
    wide = sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in shown)
    assert wide <= max(width + 1, 3)
    assert clean(text).strip().startswith(shown.removesuffix("…"))


def test_texts_of_any_length_cost_nothing():
    assert len(short("x" * 10**8, 20)) == 20
    assert len(whole("x" * 10**8)) == 5000
    assert len(short("é" * 3 + "\u0301" * 10**6, 20)) <= 61


def test_numbers_are_told_as_one_reads_them():
    assert [figure(x) for x in (None, float("nan"), 0.0, 12345.6, 1e-9, float("inf"))] == [
        "unknown", "unknown", "0", "12,346", "1e-09", "inf",
    ]  # fmt: skip
    told = [percent(x).replace("\N{NO-BREAK SPACE}", " ") for x in (0.00001, 0.5, 0.999999, 1, 7.5)]
    assert told == ["below 0.01 %", "50 %", "99.99 %", "100 %", "750 %"]


@pytest.mark.parametrize("text", ["<b>", "a & b", '"', "'"])
def test_nothing_in_a_drawing_is_markup(text):
    drawn = svg.drawing([svg.words(1, 1, text), svg.box(0, 0, 1, 1, "kept", text)], text, 1)
    found = ElementTree.fromstring(drawn)
    assert [found.get("aria-label"), found[0].text, found[1][0].text] == [text] * 3
