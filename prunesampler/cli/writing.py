"""Where a command writes to: the terminal, or a file, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer

from prunesampler.base.files import write_atomically


def check_output(output: Path, read: Iterable[Path | None]) -> Path:
    """Check that a file can be written; return where, which of a link is what it leads to.

    Args:
        output: The file.
        read: Files that the same command reads; None for those that were not given.

    Raises:
        ValueError: If it cannot, or would replace one that is read.

    Examples:
        >>> check_output(Path("nowhere/page.html"), [])
        Traceback (most recent call last):
        ValueError: nowhere/page.html cannot be written: name a file in a folder that is there
    """
    place, reason = output.resolve(), None
    if place.is_dir() or not (output.exists() or place.parent.is_dir()):
        reason = "name a file in a folder that is there"
    elif output.exists() and not output.is_file():
        reason = "it is a pipe or a device; name a file"  # a file would take its place
    elif any(path is not None and _same(output, path) for path in read):
        reason = "it is one of the files that are read; name another"
    elif not os.access(place if place.exists() else place.parent, os.W_OK):
        reason = "it is protected from that; name another, or change its permissions"
    if reason:
        raise ValueError(f"{output} cannot be written: {reason}")
    return place


def write(pieces: Iterable[str], output: Path | None) -> None:
    """Write a text to a file, whole or not at all, or to the terminal, piece by piece.

    Args:
        pieces: The text.
        output: The file; None for the terminal.

    Examples:
        >>> write(["one, ", "two"], None)
        one, two
    """
    if output is None:
        for piece in pieces:
            typer.echo(piece, nl=False)
    else:
        write_atomically(output, b"".join(piece.encode() for piece in pieces))


def _same(output: Path, path: Path) -> bool:
    """Whether both are one file."""
    return output.exists() and path.exists() and output.samefile(path)
