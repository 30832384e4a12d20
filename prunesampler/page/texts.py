"""Texts and numbers as a page shows them. What comes from a dataset may hold any character, and any number of them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable

WHOLE = 5000
"""Characters of a text that a page holds at most, those in a tooltip included."""
WIDE = "WF"
"""Kinds of characters that take twice the width, as those of Chinese do."""


def clean(text: str) -> str:
    """A text without what neither HTML nor XML can hold, and on one line.

    Examples:
        >>> clean("one" + chr(10) + "line" + chr(0))
        'one line�'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_cleaned, text))


def _cleaned(character: str) -> str:
    kind = unicodedata.category(character)
    if character.isspace() and kind != "Zs":  # breaks of lines and the like
        return " "
    damaged = kind in ("Cc", "Cs") or character in "\ufffe\uffff"
    return "\N{REPLACEMENT CHARACTER}" if damaged else character


def whole(text: str) -> str:
    """A text for a tooltip, cut only where it would fill the page.

    Examples:
        >>> whole("cat"), len(whole("cat" * 10**6))
        ('cat', 5000)
    """
    return clean(text if len(text) <= WHOLE else text[: WHOLE - 1] + "…")


def short(text: str, width: int) -> str:
    """A text cut to about so many Latin letters, with an ellipsis where something is missing.

    Examples:
        >>> short("a class", 10), short("a class with a long name", 10)
        ('a class', 'a class w…')
    """
    text, taken = clean(text[: 4 * width + 1]).strip(), 0.0
    for place, character in enumerate(text):
        taken += 2 if unicodedata.east_asian_width(character) in WIDE else 1
        # Marks stack without taking width, so that characters are counted too.
        if taken > width or place == 3 * width:
            return text[: max(place - 1, 1)] + "…"
    return text


def count(number: int) -> str:
    """A whole number with its thousands apart.

    Examples:
        >>> count(50000)
        '50,000'
    """
    return f"{number:,}"


def figure(number: float | None) -> str:
    """A number with three digits, or that it is unknown.

    Examples:
        >>> figure(0.012345), figure(2345.6), figure(float("nan"))
        ('0.0123', '2,346', 'unknown')
    """
    if number is None or math.isnan(number):
        return "unknown"
    if 1000 <= abs(number) < 1e7:
        return f"{number:,.0f}"
    return f"{number:.3g}"


def percent(share: float) -> str:
    """A share in per cent, as exact as a reader can use it, with a space that does not break.

    Examples:
        >>> [percent(share).replace(chr(160), " ") for share in (0.42, 0.0123, 0.9999, 0.0)]
        ['42 %', '1.2 %', '99.99 %', '0 %']
    """
    if math.isnan(share):
        return "unknown"
    number = 100 * share
    if number in (0, 100) or 10 <= number <= 99 or number > 100:
        text = f"{number:,.0f}"
    elif number > 99:
        text = f"{min(number, 99.99):.4g}"
    else:
        text = f"{number:.2g}" if number > 0.01 else "below 0.01"
    return f"{text}\N{NO-BREAK SPACE}%"


def listed(parts: Iterable[str]) -> str:
    """Parts of a sentence as English joins them.

    Examples:
        >>> listed(["copies"]), listed(["copies", "suspects", "junk"])
        ('copies', 'copies, suspects and junk')
    """
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def sentence(text: str) -> str:
    """A remark as a sentence of its own.

    Examples:
        >>> sentence("none: look at Target(wanted)")
        'None: look at Target(wanted).'
    """
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
