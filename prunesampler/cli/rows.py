"""One row for every sample, as CSV or as a line of JSON, and the indices that are kept."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from prunesampler.cli.reading import Unmade
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.train.trajectory import Trajectory

CHUNK = 4096
"""Rows that are made at a time, so that a reader who wants only the first gets them at once."""
Columns = dict[str, Tensor]
"""One tensor of n numbers for each column; NaN where nothing is known."""


@singledispatch
def columns(found: object) -> Columns:
    """What is known of every sample, by name.

    Args:
        found: A selection, scores or a trajectory.

    Raises:
        TypeError: If it is something else.

    Examples:
        >>> list(columns(Trajectory(torch.ones(2, 3))))
        ['index', 'error_0', 'error_1']
    """
    raise TypeError(f"nothing is known of {type(found).__name__}")


@columns.register
def _of_selection(found: Selection) -> Columns:
    kept = torch.ones(found.num_samples, dtype=torch.bool)
    kept[found.pruned] = False
    told = {"index": torch.arange(found.num_samples), "kept": kept}
    if found.weights is not None:
        weights = torch.full((found.num_samples,), math.nan)
        weights[kept] = found.weights
        told["weight"] = weights
    return told


@columns.register
def _of_scores(found: Scores) -> Columns:
    measured = found.measurements
    told = {"index": torch.arange(len(found)), "loss": measured.losses, "error": measured.errors}
    if found.labels is not None:
        told["label"] = found.labels
    if isinstance(found.curvature, Unmade) or measured.labels is None:
        return told
    try:
        p = found.leave_one_out()
    except ValueError:  # the loss has no classes, or too many
        return told
    return told | {"leave_one_out": p.gather(1, measured.labels[:, None])[:, 0]}


@columns.register
def _of_trajectory(found: Trajectory) -> Columns:
    index = {"index": torch.arange(found.num_samples)}
    return index | {f"error_{epoch}": row for epoch, row in enumerate(found.errors)}


def as_csv(table: Columns) -> Iterator[str]:
    """Comma-separated values with a line of names, in pieces of some lines; what is unknown is empty.

    Examples:
        >>> text = as_csv({"index": torch.arange(2), "error": torch.tensor([0.1, math.nan])})
        >>> "".join(text).splitlines()
        ['index,error', '0,0.1', '1,']
    """
    yield _lines_of([table])
    for rows in _rows(table):
        yield _lines_of([_text(value) for value in row] for row in rows)


def as_jsonl(table: Columns) -> Iterator[str]:
    r"""One JSON object in each line, in pieces of some lines; what is unknown is null.

    Examples:
        >>> list(as_jsonl({"index": torch.arange(1), "kept": torch.tensor([True])}))
        ['{"index": 0, "kept": true}\n']
    """
    names = list(table)
    for rows in _rows(table):
        lines = [json.dumps(dict(zip(names, row, strict=True))) for row in rows]
        yield "".join(f"{line}\n" for line in lines)


def as_indices(selection: Selection) -> Iterator[str]:
    r"""The indices that are kept, one in each line, in pieces of some lines.

    Examples:
        >>> from prunesampler import Budget
        >>> list(as_indices(Selection(torch.tensor([1]), 3, 0.1, 0.1, None, Budget(count=1))))
        ['0\n2\n']
    """
    kept = selection.kept
    for start in range(0, len(kept), CHUNK):
        yield "".join(f"{index}\n" for index in kept[start : start + CHUNK].tolist())


def _lines_of(rows: Iterable[Iterable[str]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()


def _rows(table: Columns) -> Iterator[list[tuple[Any, ...]]]:
    """The rows, some at a time, with None where nothing is known; numbers to seven digits, as float32 has them."""
    for start in range(0, len(table["index"]), CHUNK):
        parts = [column[start : start + CHUNK].tolist() for column in table.values()]
        yield [
            tuple(_rounded(value) if isinstance(value, float) else value for value in row)
            for row in zip(*parts, strict=True)
        ]


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if math.isfinite(value) else None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()  # as JSON and most readers of CSV have it
    return "" if value is None else str(value)
