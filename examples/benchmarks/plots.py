"""Figures of the accuracy benchmarks."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev

from matplotlib.figure import Figure
from results import Row

OURS = {"color": "tab:red", "linewidth": 2}


def accuracy_by_fraction(rows: list[Row], panel: str | None = None) -> Figure:
    """Accuracy against the share pruned, a line per method, a panel per value of a column."""
    names = list(dict.fromkeys(row[panel] for row in rows)) if panel else [None]
    drawn = Figure(figsize=(5.5 * len(names) + 2.5, 4.8), layout="constrained")
    for axes, name in zip(drawn.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        lines(axes, [row for row in rows if panel is None or row[panel] == name], "fraction")
        axes.set(title=name or "", xlabel="share of the samples pruned", ylabel="accuracy, %")
        axes.legend(fontsize=7, loc="lower left")
    return drawn


def accuracy_by_seconds(rows: list[Row]) -> Figure:
    """Accuracy against the time of the run, choosing included, a line per method."""
    drawn = Figure(figsize=(8, 4.8), layout="constrained")
    axes = drawn.subplots()
    lines(axes, rows, "seconds")
    axes.set(xlabel="seconds of the run, choosing included", ylabel="accuracy, %")
    axes.legend(fontsize=7, loc="lower right")
    return drawn


def lines(axes, rows: list[Row], column: str) -> None:  # type: ignore[no-untyped-def]
    """Means over the seeds with standard errors; all data is a horizontal line."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, method in enumerate(methods):
        runs = defaultdict(list)
        for row in rows:
            if row["method"] == method:
                runs[row["fraction"]].append(row)
        points = [runs[fraction] for fraction in sorted(runs)]
        y = [100 * mean(row["accuracy"] for row in group) for group in points]
        error = [100 * _error([row["accuracy"] for row in group]) for group in points]
        style = OURS if method == "influence" else {"color": f"C{number % 10}", "linewidth": 1}
        if method == "all data" and column == "fraction":
            axes.axhline(y[0], color="black", linewidth=0.8, linestyle=":", label=method)
            continue
        x = [mean(row[column] for row in group) for group in points]
        axes.errorbar(x, y, error, label=method, marker="osv^D"[number % 5], markersize=4, **style)


def _error(values: list[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
