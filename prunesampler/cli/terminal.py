"""What is written to the terminal: tables, and one line where something is refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

LONGEST = 600
"""Characters of a text that came from a file."""
NARROW = 60
"""Columns of a terminal in which no more than two of a table can be read beside each other."""


@contextmanager
def refusing() -> Iterator[None]:
    """Turn errors that bad input causes into one line on stderr, and exit code 2.

    Raises:
        typer.Exit: With code 2.
        BrokenPipeError: If the reader of a pipe went away, which is nobody's fault.

    Examples:
        >>> try:
        ...     with refusing():
        ...         raise ValueError("not a file of prunesampler")
        ... except typer.Exit as stopped:
        ...     stopped.exit_code
        2
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise refuse(
            f"{error.filename}: {error.strerror}" if error.filename else str(error)
        ) from error
    # What is absurd in a file and yet of the right form fails in arithmetic: too large for a float,
    # for memory, for a factorisation.
    except (ValueError, ImportError, ArithmeticError, MemoryError, RuntimeError) as error:
        raise refuse(str(error) or type(error).__name__) from error


def refuse(text: str) -> typer.Exit:
    """Write a line to stderr; returns what to raise.

    Examples:
        >>> refuse("there is no such file").exit_code
        2
    """
    typer.echo(f"prunesampler: {clean(text)}", err=True)
    return typer.Exit(2)


def clean(text: str) -> str:
    r"""A text in one line, of readable characters only: files must not steer the terminal.

    Examples:
        >>> clean("a\nb \x1b[31mred")
        'a b \\x1b[31mred'
    """
    words = " ".join(text[: 2 * LONGEST].split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in words)
    return shown if len(shown) <= LONGEST else f"{shown[:LONGEST]} ..."


def table(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write a table to stdout.

    Args:
        title: What stands above it.
        head: Names of the columns.
        rows: Texts of the rows.

    Examples:
        >>> table("a file", ("", ""), [("kind", "scores")])  # doctest: +NORMALIZE_WHITESPACE
        a file
        <BLANKLINE>
        kind scores
        <BLANKLINE>
    """
    console = Console(file=sys.stdout)
    cells = [[clean(cell) for cell in row] for row in rows]
    if console.width < NARROW and len(head) > 2:
        cells = [[name, _beneath(head[1:], more)] for name, *more in cells]
        head = (head[0], "")
    drawn = Table(
        title=Text(clean(title)), title_justify="left", box=SIMPLE_HEAD, show_header=any(head)
    )
    for number, name in enumerate(head):
        drawn.add_column(name, overflow="fold", style="bold" if not number else None)
    for row in cells:
        drawn.add_row(*map(Text, row))
    write = console.print
    write(drawn)


def _beneath(head: Sequence[str], cells: Sequence[str]) -> str:
    """The cells of a row beneath each other, with the names of their columns, where they have some."""
    known = [(name, cell) for name, cell in zip(head, cells, strict=True) if cell]
    return "\n".join(f"{name}: {cell}" if name else cell for name, cell in known)
