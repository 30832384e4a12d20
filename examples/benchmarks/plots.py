"""Figures of the accuracy benchmarks."""

from __future__ import annotations

from collections import defaultdict
from statistics import mean, stdev

from accuracy_report import costs
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from methods import METHODS
from results import Row, Runs, grouped


def accuracy_by_fraction(rows: list[Row], column: str) -> Figure:
    """Accuracy against the share pruned, a line per method, a panel per value of a column."""
    names = list(dict.fromkeys(row[column] for row in rows))
    drawn = Figure(figsize=(6 * len(names), 4.8), layout="constrained")
    for axes, name in zip(drawn.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        lines(axes, grouped([row for row in rows if row[column] == name]), "fraction")
        axes.set(title=name, xlabel="share of the samples pruned", ylabel="accuracy, %")
        axes.legend(fontsize=8, loc="lower left")
    return drawn


def accuracies_and_seconds(rows: list[Row]) -> Figure:
    """Points above fewer epochs against the share pruned, and accuracy against a run's seconds."""
    drawn = Figure(figsize=(13, 6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    runs = costs([row for row in rows if row["method"] in METHODS])
    lines(left, beside(runs, "fewer epochs"), "fraction")
    left.set_yscale("symlog", linthresh=1)
    left.set_yticks([-10, -5, -2, -1, -0.5, 0, 0.5, 1], minor=False)
    left.yaxis.set_major_formatter("{x:+g}")
    left.set(xlabel="share of the samples pruned", ylabel="points above fewer epochs")
    lines(right, runs, "seconds")
    right.set(xlabel="seconds of the run, choosing included", ylabel="accuracy, %")
    right.legend(fontsize=8, loc="lower right")
    return drawn


def beside(by: Runs, other: str) -> Runs:
    """With accuracies less those of another method at the same fraction and seed."""
    found: Runs = defaultdict(lambda: defaultdict(list))
    for method, runs in by.items():
        for fraction, group in runs.items():
            others = by.get(other, {}).get(fraction, [])
            base = {row["seed"]: row["accuracy"] for row in others}
            for row in group:
                if row["seed"] in base:
                    less = {**row, "accuracy": row["accuracy"] - base[row["seed"]]}
                    found[method][fraction].append(less)
    return found


def lines(axes: Axes, by: Runs, column: str) -> None:
    """Means over the seeds with standard errors."""
    for group in by["all data"].values():
        level = mean_and_error(group)[0]
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", label="all data")
    for method, runs in by.items():
        if method == "all data":
            continue
        points = sorted(
            (mean(row[column] for row in group), *mean_and_error(group)) for group in runs.values()
        )
        number, ours = list(METHODS).index(method), method.startswith("influence")
        x, y, error = zip(*points, strict=True)
        axes.errorbar(
            x, y, error, label=method, color=colormaps["tab20"](number % 20), elinewidth=0.7,
            linewidth=2 if ours else 1, marker="osv^DPX"[number % 7], markersize=5,
        )  # fmt: skip


def mean_and_error(runs: list[Row]) -> tuple[float, float]:
    """Of the accuracy, in percent; the error is the standard error."""
    values = [100 * row["accuracy"] for row in runs]
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
