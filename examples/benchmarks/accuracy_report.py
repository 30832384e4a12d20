"""Tables of accuracy.py."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, median

from ideas import IDEAS
from methods import METHODS
from results import Row, points, spread
from rich.table import Table

POINTS = (0.5, 1.0, 1.3)
"""Below the accuracy of all data, in percentage points; the paper loses 1.3."""


def steady(rows: list[Row]) -> list[Row]:
    """The same rows with seconds that do not depend on what else the machine did meanwhile.

    A training sample costs every method the same: the median over all runs. What choosing took is
    added as it was measured in each run.
    """
    cost = median((row["seconds"] - row["choosing_seconds"]) / row["samples"] for row in rows)
    found = []
    for row in rows:
        curve = [(n, n * cost + row["choosing_seconds"], right) for n, _, right in row["curve"]]
        found.append({**row, "seconds": curve[-1][1], "curve": curve})
    return found


def grouped(rows: list[Row]) -> dict[str, dict[float, list[Row]]]:
    """Runs by method and fraction."""
    found: dict[str, dict[float, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["method"]][row["fraction"]].append(row)
    return found


def tables(rows: list[Row]) -> list[Table]:
    """Accuracies of the methods and of the ideas, and times."""
    found = [accuracies(rows, list(METHODS)), times([r for r in rows if r["method"] in METHODS])]
    if any(row["method"] in IDEAS for row in rows):
        found.insert(1, accuracies(rows, ["fewer epochs", "random", "random, redrawn", *IDEAS]))
    return found


def accuracies(rows: list[Row], methods: list[str]) -> Table:
    """Accuracy by method and fraction, and paired differences over all fractions and seeds."""
    by = grouped(rows)
    rows = [row for row in rows if row["method"] in methods]
    fractions = sorted({row["fraction"] for row in rows} - {0.0})
    shown = Table(
        "accuracy %", *(f"{fraction:.0%} pruned" for fraction in fractions), "to fewer epochs",
        "to random", "choosing s",
    )  # fmt: skip
    for method in methods:
        runs = by[method]
        if not runs:
            continue
        if method == "all data":
            text = spread([100 * row["accuracy"] for row in runs[0.0]])
            shown.add_row(method, *[text for _ in fractions], "", "", "0.0")
            continue
        beside = [
            spread([d for f in runs for d in points(runs[f], by[other][f])], "+.2f")
            for other in ("fewer epochs", "random")
        ]
        shown.add_row(
            method, *(spread([100 * row["accuracy"] for row in runs[f]]) for f in fractions),
            *("" if text.startswith("+0.00 ± 0.00") else text for text in beside),
            f"{mean(row['choosing_seconds'] for f in runs for row in runs[f]):.1f}",
        )  # fmt: skip
    return shown


def times(rows: list[Row]) -> Table:
    """What it takes each method, at its best fraction, to come so near to all data."""
    rows = steady(rows)
    full = {row["seed"]: row for row in rows if row["method"] == "all data"}
    shown = Table("method", *(f"all data - {below} points" for below in POINTS))
    for method in dict.fromkeys(row["method"] for row in rows):
        cells = []
        for below in POINTS:
            reached = [
                best
                for seed, run in full.items()
                if (best := quickest(rows, method, seed, run["accuracy"] - below / 100))
            ]
            text = f"{len(reached)} of {len(full)} seeds"
            if reached and len(reached) == len(full):
                seconds = mean(s / full[seed]["seconds"] for s, _, seed in reached)
                samples = mean(n / full[seed]["samples"] for _, n, seed in reached)
                text = f"{seconds:.0%} of the time, {samples:.0%} of the samples"
            cells.append(text)
        shown.add_row(method, *cells)
    return shown


def quickest(
    rows: list[Row], method: str, seed: int, target: float
) -> tuple[float, int, int] | None:
    """Seconds, samples and seed of the first point of any curve of this method at the target."""
    found = [
        (seconds, samples, seed)
        for row in rows
        if row["method"] == method and row["seed"] == seed
        for samples, seconds, right in row["curve"]
        if right >= target
    ]
    return min(found, default=None)
