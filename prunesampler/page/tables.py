"""Small tables for notebooks, from the tables that the same objects are in a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from prunesampler.page.texts import whole


def as_html(text: str) -> str:
    """A table in Markdown, and sentences around it, as HTML; everything in it is escaped.

    Examples:
        >>> as_html("| class | found |" + chr(10) + "|---|---|" + chr(10) + "| <b> | 3 |")
        '<table><tr><th>class</th><th>found</th></tr><tr><td>&lt;b&gt;</td><td>3</td></tr></table>'
    """
    lines = [line.strip() for line in text.splitlines()]
    rows = [_cells(line) for line in lines if line.startswith("|") and not line.startswith("|---")]
    sentences = [line for line in lines if line and not line.startswith("|")]
    found = "".join(f"<p>{escape(whole(line))}</p>" for line in sentences)
    return (table(rows[0], rows[1:]) if rows else "") + found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML, escaped.

    Examples:
        >>> table(("", "found"), [("copies", "3")])
        '<table><tr><th></th><th>found</th></tr><tr><td>copies</td><td>3</td></tr></table>'
    """
    return f"<table>{_row(head, 'th')}{''.join(_row(row, 'td') for row in rows)}</table>"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def _row(cells: Sequence[str], kind: str) -> str:
    return f"<tr>{''.join(f'<{kind}>{escape(whole(cell))}</{kind}>' for cell in cells)}</tr>"
