"""Figures of the accuracy benchmarks."""

from __future__ import annotations

from statistics import mean, stdev

from accuracy_report import priced
from ideas import IDEAS
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from methods import METHODS
from results import Row, Runs, grouped, points

COLORS = [colormaps[name](number) for name in ("tab20", "tab20b") for number in range(20)]
Curve = list[tuple[float, float, float]]
"""Places, means and standard errors."""


def accuracy_by_fraction(rows: list[Row], column: str) -> Figure:
    """Accuracy against the share pruned, a line per method, a panel per value of a column."""
    names = list(dict.fromkeys(row[column] for row in rows))
    drawn = Figure(figsize=(6 * len(names), 4.8), layout="constrained")
    for axes, name in zip(drawn.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        draw(axes, accuracies(grouped([row for row in rows if row[column] == name]), "fraction"))
        axes.set(title=name, xlabel="share of the samples pruned", ylabel="accuracy, %")
        axes.legend(fontsize=8, loc="lower left")
    return drawn


def accuracies_and_seconds(rows: list[Row]) -> Figure:
    """Points above fewer epochs against the share pruned, and accuracy against a run's seconds."""
    drawn = Figure(figsize=(13, 6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    known = [row for row in rows if row["method"] in METHODS]
    runs = priced(known) if known else {}
    draw(left, differences(runs, "fewer epochs"))
    left.set_yscale("symlog", linthresh=1)
    left.set_yticks([-10, -5, -2, -1, -0.5, 0, 0.5, 1], minor=False)
    left.yaxis.set_major_formatter("{x:+g}")
    left.set(xlabel="share of the samples pruned", ylabel="points above fewer epochs")
    draw(right, accuracies(runs, "seconds"))
    right.set(xlabel="seconds of the run, choosing included", ylabel="accuracy, %")
    right.legend(fontsize=8, loc="lower right")
    return drawn


def accuracies(by: Runs, column: str) -> dict[str, Curve]:
    """In percent, by the mean of a column."""
    return {
        method: sorted(
            (mean(row[column] for row in group), *summary([100 * r["accuracy"] for r in group]))
            for group in runs.values()
        )
        for method, runs in by.items()
    }


def differences(by: Runs, other: str) -> dict[str, Curve]:
    """In points, at the fractions at which both have runs of the same seeds."""
    base = by.get(other, {})
    found: dict[str, Curve] = {}
    for method, runs in by.items():
        groups = ((f, points(group, base.get(f, []))) for f, group in sorted(runs.items()))
        found[method] = [(fraction, *summary(group)) for fraction, group in groups if group]
    return found


def draw(axes: Axes, curves: dict[str, Curve]) -> None:
    """A line with error bars per method, ours thick; all data as a level."""
    for method, curve in curves.items():
        if method == "all data":
            for _, level, _ in curve:
                axes.axhline(level, color="black", linewidth=0.8, linestyle=":", label=method)
        elif curve:
            number, ours = [*METHODS, *IDEAS].index(method), method.startswith("influence")
            axes.errorbar(
                *zip(*curve, strict=True), label=method, color=COLORS[number],
                elinewidth=0.7, linewidth=2 if ours else 1, marker="osv^DPX"[number % 7],
                markersize=5,
            )  # fmt: skip


def summary(values: list[float]) -> tuple[float, float]:
    """Mean and standard error."""
    return mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
