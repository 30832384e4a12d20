"""Tables of accuracy.py."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from statistics import mean, median, pvariance, variance

from ideas import IDEAS
from methods import METHODS
from results import Row, Runs, grouped, points, spread
from rich.table import Table

POINTS = (0.5, 1.3)
"""Below the accuracy of all data, in percentage points; the paper loses 1.3."""

TIMED = (
    "all data", "fewer epochs", "random", "random, redrawn", "influence", "influence, redrawn",
    "influence, keep hard", "InfoBatch", "forgetting",
)  # fmt: skip
"""Methods whose times are shown; the others are slower than fewer epochs."""


def tables(rows: list[Row]) -> list[Table]:
    """Accuracies of the methods and of the ideas, and times."""
    found = [accuracies(rows, list(METHODS))] if any(r["method"] in METHODS for r in rows) else []
    tried = {row["fraction"] for row in rows if row["method"] in IDEAS}
    if tried:
        beside = [row for row in rows if row["fraction"] in tried]
        found.append(accuracies(beside, ["fewer epochs", "random", "random, redrawn", *IDEAS]))
    if any(row["method"] == "all data" for row in rows):
        found.append(times([row for row in rows if row["method"] in TIMED]))
    return found


def accuracies(rows: list[Row], methods: list[str]) -> Table:
    """Accuracy by method and every second fraction, and paired differences over all fractions."""
    by = grouped(rows)
    fractions = sorted({r["fraction"] for r in rows if r["method"] in {*methods} - {"all data"}})
    second = fractions[::2]
    shown = Table(
        "accuracy %", *(f"{fraction:.0%} pruned" for fraction in second), "to fewer epochs",
        "to random", "choosing s",
    )  # fmt: skip
    for method in methods:
        runs = by[method]
        every = [row for fraction in fractions for row in runs[fraction]]
        if method == "all data" and runs[0.0]:
            text = spread([100 * row["accuracy"] for row in runs[0.0]])
            shown.add_row(method, *[text for _ in second], "", "", "0.0")
        if not every:
            continue
        beside = (
            "" if method == other else over_all(runs, by[other], fractions)
            for other in ("fewer epochs", "random")
        )
        shown.add_row(
            method, *(spread([100 * row["accuracy"] for row in runs[f]]) for f in second),
            *beside, f"{mean(row['choosing_seconds'] for row in every):.1f}",
        )  # fmt: skip
    return shown


def over_all(
    runs: dict[float, list[Row]], others: dict[float, list[Row]], fractions: list[float]
) -> str:
    """Mean over the fractions of the difference in points, or nothing if a fraction is missing.

    Its standard error is that of the means at each fraction, as far as they vary with the seed.
    """
    groups = [points(runs[fraction], others[fraction]) for fraction in fractions]
    if not all(groups):
        return ""
    text = f"{mean(mean(group) for group in groups):+.2f}"
    if min(map(len, groups)) == 1:
        return text
    squares = (variance(group) / len(group) for group in groups)
    return f"{text} ± {sum(squares) ** 0.5 / len(groups):.2f}"


def priced(rows: list[Row]) -> Runs:
    """The runs with seconds that the machine's mood spares.

    A training sample costs every method the same, the median over all runs; what choosing took is
    added as it was measured.
    """
    sample = median((row["seconds"] - row["choosing_seconds"]) / row["samples"] for row in rows)
    found = [{**row, "seconds": row["samples"] * sample + row["choosing_seconds"]} for row in rows]
    return grouped(found)


def frontier(runs: dict[float, list[Row]]) -> list[tuple[float, float]]:
    """Mean seconds and mean accuracy by fraction, the quickest first."""
    return sorted(
        (mean(row["seconds"] for row in group), mean(row["accuracy"] for row in group))
        for group in runs.values()
    )


def cost_of(target: float, line: list[tuple[float, float]]) -> float:
    """Where the line from point to point first meets the accuracy; its last point does."""
    for (before, low), (after, high) in pairwise(line):
        if low >= target:
            return before
        if high >= target:
            return before + (after - before) * (target - low) / (high - low)
    return line[-1][0]


def shares(rows: list[Row]) -> dict[str, list[float]]:
    """By method, the seconds to come so near to all data as shares of what that takes."""
    by = priced(rows)
    full = by["all data"][0.0]
    best = mean(row["accuracy"] for row in full)
    found: dict[str, list[float]] = defaultdict(list)
    for method, runs in by.items():
        line, whole = frontier({**runs, 0.0: full}), mean(row["seconds"] for row in full)
        found[method] += [cost_of(best - below / 100, line) / whole for below in POINTS]
    return found


def times(rows: list[Row]) -> Table:
    """Shares of all data's seconds, with the jackknife's standard error over the seeds."""
    seeds = {row["seed"] for row in rows if row["method"] == "all data"}
    others = [seeds - {seed} for seed in seeds] if len(seeds) > 1 else []
    without = [shares([row for row in rows if row["seed"] in kept]) for kept in others]
    shown = Table("% of all data's", *(f"seconds to -{below}" for below in POINTS))
    for method, values in shares(rows).items():
        if method == "all data":
            continue
        cells = [f"{100 * value:.0f}" for value in values]
        if without and all(method in found for found in without):
            left_out = zip(*(found[method] for found in without), strict=True)
            errors = (100 * ((len(seeds) - 1) * pvariance(values)) ** 0.5 for values in left_out)
            cells = [f"{cell} ± {error:.0f}" for cell, error in zip(cells, errors, strict=True)]
        shown.add_row(method, *cells)
    return shown
