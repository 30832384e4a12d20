"""The commands; each reads files, asks another module, and writes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesampler import __version__
from prunesampler.base.files import write_atomically
from prunesampler.cli.comparing import compared
from prunesampler.cli.facts import facts
from prunesampler.cli.reading import (
    NAMES,
    Found,
    check_room,
    read,
    read_complete,
    read_images,
    read_scores,
    size_of,
)
from prunesampler.cli.rows import as_csv, as_indices, as_jsonl, columns
from prunesampler.cli.terminal import refuse, refusing, table
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection

app = typer.Typer(
    name="prunesampler",
    no_args_is_help=True,
    help="Look at the files that prunesampler writes: selections, scores and trajectories.",
    epilog="Example: prunesampler show pruned.safetensors",
)
File = Annotated[
    Path, typer.Argument(help="A selection, scores or a trajectory.", show_default=False)
]
EACH = 100
"""Bytes that a number takes in a list and as text, at most."""


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"prunesampler {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options of no command."""


@app.command(epilog="Example: prunesampler show pruned.safetensors")
def show(file: File) -> None:
    """Tell what a file is, in a table of the facts that matter."""
    with refusing():
        table(str(file), ("", ""), facts(read(file)).items())


@app.command(epilog="Example: prunesampler diff monday.safetensors tuesday.safetensors")
def diff(
    a: Annotated[Path, typer.Argument(help="A selection, scores or a trajectory.")],
    b: Annotated[Path, typer.Argument(help="Another of the same kind and the same samples.")],
) -> None:
    """Compare two selections, or two scores or trajectories of the same samples, and with chance.

    Selections agree on a sample if both keep it or neither does. By chance: what two random sets of the
    same sizes, or two random orders, would have.
    """
    with refusing():
        one, other = read(a), read(b)
        if type(one) is not type(other):
            raise ValueError(
                f"{a} holds {NAMES[type(one)]} and {b} {NAMES[type(other)]}; only two of a kind can be compared"
            )
        _check_size(one, other)
        table(f"A: {a}, B: {b}", ("", "found", "by chance"), compared(one, other))


@app.command(epilog="Example: prunesampler export pruned.safetensors --csv -o pruned.csv")
def export(
    file: File,
    indices: Annotated[bool, typer.Option("--indices", help="Kept indices, one a line.")] = False,
    csv: Annotated[
        bool, typer.Option("--csv", help="A row per sample, with a line of names.")
    ] = False,
    jsonl: Annotated[bool, typer.Option("--jsonl", help="A line of JSON per sample.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default the terminal.")
    ] = None,
) -> None:
    """Write what a file holds of every sample: whether it is kept, its loss, error and label."""
    if indices + csv + jsonl != 1:
        raise refuse("give one of --indices, --csv and --jsonl")
    with refusing():
        found = read(file)
        _check_size(found)
        if indices:
            text = as_indices(_selection(file, found))
        else:
            text = (as_csv if csv else as_jsonl)(columns(read_complete(file, found)))
        _write(text, output)


@app.command(epilog="Example: prunesampler audit scores.safetensors --wanted sure.safetensors")
def audit(
    scores: Annotated[Path, typer.Argument(help="What Scores.save wrote.")],
    wanted: Annotated[
        Path | None, typer.Option(help="Scores of samples that are sure, by the same model.")
    ] = None,
) -> None:
    """Tell what is wrong with a pool: near copies, suspect labels, off-target samples, imbalance."""
    with refusing():
        sure = None if wanted is None else read_scores(wanted)
        head, _, *rows = (line[2:-2].split(" | ", 3) for line in _lines(read_scores(scores), sure))
        table(str(scores), head, rows)


@app.command(
    epilog="Example: prunesampler report pruned.safetensors -o report.html --images photos"
)
def report(
    file: Annotated[Path, typer.Argument(help="A selection, or scores to be audited.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path(
        "report.html"
    ),
    scores: Annotated[
        Path | None, typer.Option(help="The scores that a selection was chosen from.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Images in a folder for each class, in torchvision's order.")
    ] = None,
) -> None:
    """Write one page that shows a selection, or what is wrong with a pool."""
    with refusing():
        found = read(file)
        dataset = None if images is None else read_images(images)
        _check_folder(output)
        if isinstance(found, Selection):
            known = None if scores is None else read_scores(scores)
            found.report(output, dataset=dataset, scores=known)
        elif isinstance(found, Scores):
            read_scores(file).audit().report(output, dataset=dataset)
        else:
            raise ValueError(
                f"{file} holds {NAMES[type(found)]}; a report is of a selection or of scores"
            )
        typer.echo(f"wrote {output}")


def _lines(scores: Scores, wanted: Scores | None) -> list[str]:
    """The lines of the table that an audit is as text."""
    return str(scores.audit(wanted)).splitlines()


def _selection(file: Path, found: Found) -> Selection:
    """What was found, if it keeps some samples and others not.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(found, Selection):
        raise ValueError(
            f"{file} holds {NAMES[type(found)]}, which keep no samples: take --csv or --jsonl"
        )
    return found


def _check_size(*found: Found) -> None:
    """Check that there is memory for what will be said of every sample.

    Raises:
        ValueError: If there is not.
    """
    for one in found:
        check_room(size_of(one), EACH)


def _check_folder(output: Path) -> None:
    """Check that a file can be written there.

    Raises:
        ValueError: If there is no such folder.
    """
    if not output.parent.is_dir() or output.is_dir():
        raise ValueError(f"{output} cannot be written: name a file in a folder that is there")


def _write(text: str, output: Path | None) -> None:
    """Write a text to a file, whole or not at all, or to the terminal."""
    if output is None:
        typer.echo(text, nl=False)
    else:
        _check_folder(output)
        write_atomically(output, text.encode())
