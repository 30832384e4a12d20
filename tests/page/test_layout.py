"""A page stands alone, runs nothing, and can be read in both themes; its texts are data."""

import re
import sys
from importlib.resources import files

import pytest
import torch
from html_checks import checked

from prunesampler.page.charts import Bar, bars
from prunesampler.page.layout import Card, Chart, Page, Section, Tile, check_tools, render
from prunesampler.page.pictures import Picture, picture

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--",
    "&amp;&#60;",
    "javascript:alert(1)",
    "مرحبا بالعالم \u202e fdp.exe",
    "zero\x00 bell\x07 lone \ud800 \uffff",
    "漢字" * 400,
    "a" * 3000,
]


def page_of(text):
    """A page that holds a text everywhere where there can be one."""
    chart = Chart(text, bars([Bar(text, text, (("kept", 0.5),))], text), text)
    shown = ((Picture(text, remark=text), text), (picture(torch.rand(1, 8, 8)), text))
    tile = Tile(shown, ((text, text),))
    section = Section(
        "all", text, (text,), (Card(text, text, text),), (chart,), (tile,), ((text, text),)
    )
    return Page(text, (text, text, text), (text,), (section,), text)


@pytest.mark.parametrize("text", HOSTILE)
def test_texts_are_data(text):
    harmless, seen = (checked(render(page_of(each))) for each in ("harmless", text))
    tags = [tag for tag, _ in seen.elements if tag not in ("bdi", "title", "small")]
    assert tags == [tag for tag, _ in harmless.elements if tag not in ("bdi", "title", "small")]
    assert seen.style == harmless.style
    assert "49" not in seen.text


def test_what_is_cut_is_whole_in_a_tooltip():
    name = "a name that goes on " * 20
    seen = checked(render(page_of(name)))
    assert any(bdi.get("title") == name for bdi in seen.of("bdi"))
    assert "a name that goes on a nam…" in seen.text  # in the chart


def test_a_picture_has_its_alternative_text():
    tile = Tile(((picture(torch.rand(1, 8, 8)), "Sample 3, class cat"),), (("class", "cat"),))
    seen = checked(render(Page("t", ("h",), (), (Section("s", "S", tiles=(tile,)),))))
    assert [image["alt"] for image in seen.of("img")] == ["Sample 3, class cat"]


def test_texts_are_shown_in_rows_and_images_in_tiles():
    text, image = (Picture("a text"), ""), (picture(torch.rand(1, 8, 8)), "an image")
    looks = [
        Section("s", "S", tiles=tuple(Tile(each, ()) for each in tiles)).look
        for tiles in ([(text,), (text,), (image,)], [(image,), (text,)], [(image, image), (text,)])
    ]
    assert looks == ["rows", "single", "pairs"]


def test_without_the_extra_it_is_named(monkeypatch):
    for name in ("jinja2", "PIL.Image"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ImportError, match=r'pip install "prunesampler\[report\]"'):
                check_tools()


def colours():
    """The colours of each theme: light, dark and printed."""
    text = (files("prunesampler.page") / "page.html.j2").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    return [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in blocks]


def luminance(colour):
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_known():
    assert contrast("#000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", range(3))
def test_all_text_stands_out(theme):
    found = colours()
    assert len(found) == 3
    for text in ("ink", "quiet", "kept", "pruned", "good", "link"):
        for ground in ("ground", "raised"):
            assert contrast(found[theme][text], found[theme][ground]) >= 4.5, (text, ground)


@pytest.mark.parametrize("theme", range(3))
def test_bars_stand_out_from_their_track(theme):
    found = colours()[theme]
    for bar in ("kept", "pruned", "quiet"):
        assert contrast(found[bar], found["track"]) >= 3
