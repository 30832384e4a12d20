"""A page as data, and the HTML that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from prunesampler.page.pictures import LETTERS, Picture
from prunesampler.page.texts import clean, short, whole

MISSING = 'reports need jinja2 and Pillow: pip install "prunesampler[report]"'


@dataclass(frozen=True)
class Card:
    """One number in large type.

    Args:
        name: What it is.
        value: The number, as text.
        note: What to hold it against, one sentence or none.

    Examples:
        >>> Card("kept", "60 %").note
        ''
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Chart:
    """A chart and what one sees in it.

    Args:
        title: What is drawn.
        drawing: SVG of `prunesampler.page.charts`; the only text that is not escaped.
        caption: What one sees, in whole sentences.

    Examples:
        >>> Chart("Kept share", "<svg></svg>", "Half of them are kept.").title
        'Kept share'
    """

    title: str
    drawing: str
    caption: str


@dataclass(frozen=True)
class Tile:
    """One sample in a gallery, or some side by side, and what is known of them.

    Args:
        pictures: What is shown of each, and the alternative text of its image.
        facts: Names and values below them.

    Examples:
        >>> Tile(((Picture("a text"), "sample 3"),), (("label", "cat"),)).facts
        (('label', 'cat'),)
    """

    pictures: tuple[tuple[Picture, str], ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading, and in this order, what it holds.

    Args:
        anchor: Its name in links within the page, of Latin letters.
        title: Its heading.
        sentences: Paragraphs.
        cards: Numbers in large type.
        charts: Charts side by side.
        tiles: A gallery.
        facts: A list of names and values.

    Examples:
        >>> Section("headroom", "Headroom", ("Unknown.",)).tiles
        ()
    """

    anchor: str
    title: str
    sentences: tuple[str, ...] = ()
    cards: tuple[Card, ...] = ()
    charts: tuple[Chart, ...] = ()
    tiles: tuple[Tile, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()

    @property
    def look(self) -> str:
        """Class of the gallery: rows where most samples are text, else tiles or pairs of them."""
        shown = [picture for tile in self.tiles for picture, _ in tile.pictures]
        if 2 * sum(bool(picture.image) for picture in shown) < len(shown):
            return "rows"
        return "pairs" if any(len(tile.pictures) > 1 for tile in self.tiles) else "single"


@dataclass(frozen=True)
class Page:
    """All that a page says.

    Args:
        title: What it is, in few words.
        headline: What was found, in pieces; every second one is a figure that stands out.
        sentences: Paragraphs below the headline.
        sections: Its parts.
        missing: What would have been shown with more arguments, one sentence or none.

    Examples:
        >>> page = Page("Selection", ("", "60 %", " stay"), (), (), "")
        >>> "<em>60 %</em> stay" in render(page)
        True
    """

    title: str
    headline: tuple[str, ...]
    sentences: tuple[str, ...]
    sections: Sequence[Section]
    missing: str = ""


def check_tools() -> None:
    """Check that what pages are made with is installed.

    Raises:
        ImportError: If jinja2 or Pillow is not, with the command that installs them.

    Examples:
        >>> check_tools()
    """
    try:
        import jinja2  # noqa: F401
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise ImportError(MISSING) from error


def render(page: Page) -> str:
    """The page as one HTML document that needs no other file, no network and no script.

    Args:
        page: The page. Its texts may be anything: they are escaped.

    Raises:
        ImportError: If jinja2 or Pillow is not installed.

    Examples:
        >>> text = render(Page("<b>", ("one",), (), ()))
        >>> "<title>&lt;b&gt;" in text, "<b>" in text
        (True, False)
    """
    check_tools()
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalised,
    )
    environment.filters |= {"short": short, "whole": whole}
    template = (files("prunesampler.page") / "page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(page=page, letters=LETTERS)


def _finalised(value: Any) -> Any:
    """Plain text without damaged characters; what is marked as HTML stays as it is."""
    return clean(value) if type(value) is str else value
