"""Results of the accuracy benchmarks: one line of JSON per run, resumable run by run."""

from __future__ import annotations

import io
import json
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.box import MARKDOWN
from rich.console import Console
from rich.progress import track
from rich.table import Table

Job = dict[str, Any]
"""What a run is of: method, fraction, seed and what else a benchmark varies."""
Row = dict[str, Any]
Runs = dict[str, dict[float, list[Row]]]
"""By method and fraction."""
BEGINNING = '{"settings": '


def read(*paths: Path) -> list[Row]:
    """All whole rows, job and measures side by side; of two for the same job the later."""
    lines = {json.dumps(line["job"]): line for path in paths for line in _lines(path)}
    return [{**line["job"], **line["result"]} for line in lines.values()]


def _lines(path: Path) -> list[Row]:
    found = []
    for line in path.read_text().splitlines() if path.exists() else ():
        if not BEGINNING.startswith(line[: len(BEGINNING)]):
            raise SystemExit(f"{path} is not a file of results; nothing was written")
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # cut off by a kill, or empty
    return found


class Results:
    """A file of runs with the same settings, for one process at a time."""

    def __init__(self, path: Path, settings: Row) -> None:
        self.path, self._settings = path, json.loads(json.dumps(settings))

    def run(self, jobs: Iterable[Job], work: Callable[[Job], Row], minutes: float | None) -> None:
        """Do the jobs that are not in the file yet; begin none after so many minutes.

        Raises:
            SystemExit: when the file holds anything but runs of these settings, unless minutes is 0.
        """
        if minutes == 0:
            return
        lines = _lines(self.path)
        for line in lines:
            if line.get("settings") != self._settings:
                raise SystemExit(
                    f"{self.path} holds runs of other settings: {line.get('settings')}, not "
                    f"{self._settings}; nothing was written. Choose another --output"
                )
        done, todo = [line["job"] for line in lines], list[Job]()
        for job in jobs:
            if job not in done and job not in todo:
                todo.append(job)
        started = time.monotonic()
        for job in track(todo, self.path.stem, console=Console(stderr=True)):
            if minutes is not None and time.monotonic() - started > 60 * minutes:
                break
            self._append(job, work(job))

    def _append(self, job: Job, result: Row) -> None:
        """A line of its own, even after one that was cut off."""
        line = json.dumps({"settings": self._settings, "job": job, "result": result})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write("\n" + line + "\n")
            file.flush()
            os.fsync(file.fileno())


def grouped(rows: list[Row]) -> Runs:
    found: Runs = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["method"]][row["fraction"]].append(row)
    return found


def spread(values: list[float], form: str = ".1f") -> str:
    """Mean and, of several values, the standard error."""
    plain = form.lstrip("+")
    error = f" ± {stdev(values) / len(values) ** 0.5:{plain}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{error}" if values else ""


def points(runs: list[Row], others: list[Row]) -> list[float]:
    """Differences of the accuracy in percentage points, seed by seed."""
    beside = {row["seed"]: row["accuracy"] for row in others}
    return [100 * (r["accuracy"] - beside[r["seed"]]) for r in runs if r["seed"] in beside]


def show(*tables: Table) -> None:
    """Print tables as Markdown, as the README has them."""
    for table in tables:
        print(markdown(table))


def markdown(table: Table) -> str:
    """A table's text, not wrapped."""
    table.box = MARKDOWN
    text = io.StringIO()
    Console(file=text, width=400, color_system=None).print(table)
    return "\n".join(
        re.sub(" +", " ", line.strip()) for line in text.getvalue().splitlines() if line.strip()
    )
