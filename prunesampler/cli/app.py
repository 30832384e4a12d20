"""The commands; each reads files, asks another module, and writes what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prunesampler import __version__
from prunesampler.cli.comparing import compared
from prunesampler.cli.facts import facts
from prunesampler.cli.reading import (
    NAMES,
    Found,
    as_scores,
    check_memory,
    read,
    read_images,
    read_known,
    read_whole,
    size_of,
)
from prunesampler.cli.rows import as_csv, as_indices, as_jsonl, columns
from prunesampler.cli.terminal import clean, refuse, refusing, table
from prunesampler.cli.writing import check_output, write
from prunesampler.select.audit import Audit
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
Wanted = Annotated[
    Path | None,
    typer.Option(
        help="Scores of samples that are sure, by the same model, to find what is unlike them."
    ),
]
EACH, CELL = 100, 50
"""Bytes that a sample takes in columns, and a number with its name as text, at most."""


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
        place = None if output is None else check_output(output, [file])
        found = read(file) if indices else read_known(file)
        _check_size(found)
        if indices:
            write(as_indices(_selection(file, found)), place)
            return
        held = columns(found)
        if place is not None:
            check_memory(size_of(found) * len(held) * CELL, f"{len(held)} columns")
        write((as_csv if csv else as_jsonl)(held), place)


@app.command(epilog="Example: prunesampler audit scores.safetensors --wanted sure.safetensors")
def audit(
    scores: Annotated[Path, typer.Argument(help="What Scores.save wrote.")],
    wanted: Wanted = None,
) -> None:
    """Tell what is wrong with a pool: near copies, suspect labels, off-target samples, imbalance."""
    with refusing():
        lines = str(_audited(scores, read_whole(scores), wanted)).splitlines()
        head, _, *rows = ([cell.strip() for cell in line[1:-1].split("|", 3)] for line in lines)
        table(str(scores), head, rows)


@app.command(
    epilog="Example: prunesampler report scores.safetensors --wanted sure.safetensors -o pool.html"
)
def report(
    file: Annotated[Path, typer.Argument(help="A selection, or scores to be audited.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = Path(
        "report.html"
    ),
    scores: Annotated[
        Path | None, typer.Option(help="The scores that a selection was chosen from.")
    ] = None,
    wanted: Wanted = None,
    images: Annotated[
        Path | None, typer.Option(help="Images in a folder for each class, in torchvision's order.")
    ] = None,
) -> None:
    """Write one page that shows a selection, or what is wrong with a pool."""
    with refusing():
        place = check_output(output, [file, scores, wanted])
        found = read_whole(file)
        _check_size(found)
        dataset = None if images is None else read_images(images)
        if isinstance(found, Selection):
            if wanted is not None:
                raise ValueError(
                    f"--wanted is for a report of scores, and {file} holds a selection; leave it out"
                )
            known = None if scores is None else as_scores(scores, read_whole(scores))
            found.report(place, dataset=dataset, scores=known)
        elif isinstance(found, Scores):
            if scores is not None:
                raise ValueError(
                    f"--scores is for a report of a selection, and {file} holds scores; leave it out"
                )
            _audited(file, found, wanted).report(place, dataset=dataset)
        else:
            raise ValueError(
                f"{file} holds {NAMES[type(found)]}; a report is of a selection or of scores"
            )
        typer.echo(f"wrote {clean(str(output))}")


def _audited(path: Path, found: Found, wanted: Path | None) -> Audit:
    """The audit of scores, beside wanted samples if there are some; of those no curvature is needed.

    Raises:
        ValueError: If one file holds something else, or they do not fit together.
    """
    pool = as_scores(path, found)
    return pool.audit(None if wanted is None else as_scores(wanted, read(wanted)))


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
        check_memory(size_of(one) * EACH, f"{size_of(one):,} samples")
