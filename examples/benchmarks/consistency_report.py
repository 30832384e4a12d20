"""Table and figure of consistency.py."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from results import Row
from rich.table import Table
from scipy.stats import spearmanr
from sets import SETS

TITLES = {"convex": "convex head", "deep": "trained network"}
LINEAR = {"convex": 1e-4, "deep": 0.03}  # a loss gap below is drawn on a linear scale
PAIRS = (("predicted_shift", "shift", "last layer's shift"),
         ("predicted_gap", "gap", "test loss gap"))  # fmt: skip


def pairs(rows: list[Row], model: str, predicted: str, measured: str) -> np.ndarray:
    """Predicted and measured values of all pruned sets, shape (2, k)."""
    chosen = [row for row in rows if row["model"] == model and row["fraction"] > 0]
    return np.array([[row[predicted] for row in chosen], [row[measured] for row in chosen]])


def tables(rows: list[Row]) -> list[Table]:
    """Rank correlation of predicted and measured, and the slope of measured on predicted through zero."""
    shown = Table("model", "sets", "shift: rank correlation", "slope",
                  "loss gap: rank correlation", "slope")  # fmt: skip
    for model in dict.fromkeys(row["model"] for row in rows):
        for kind in SETS:
            chosen = [row for row in rows if row["set"] == kind]
            found = [pairs(chosen, model, predicted, measured) for predicted, measured, _ in PAIRS]
            if len(found[0][0]) < 3:
                continue
            cells = ((f"{spearmanr(x, y)[0]:.2f}", f"{x @ y / (x @ x):.2f}") for x, y in found)
            shown.add_row(TITLES[model], kind, *(text for pair in cells for text in pair))
    return [shown]


def figure(rows: list[Row]) -> Figure:
    """Measured against predicted, one panel per model and quantity."""
    models = [model for model in TITLES if any(row["model"] == model for row in rows)]
    drawn = Figure(figsize=(10, 4.5 * len(models)), layout="constrained")
    panels = drawn.subplots(len(models), 2, squeeze=False)
    for line, model in zip(panels, models, strict=True):
        for axes, (predicted, measured, name) in zip(line, PAIRS, strict=True):
            panel(axes, [row for row in rows if row["model"] == model], predicted, measured)
            if measured == "shift":
                axes.set(xscale="log", yscale="log")
            else:
                axes.set_xscale("symlog", linthresh=LINEAR[model])
                axes.set_yscale("symlog", linthresh=LINEAR[model])
            axes.set(xlabel="predicted", ylabel="measured")
            axes.set_title(f"{TITLES[model]}: {name}", fontsize=10)
    panels[-1][0].legend(fontsize=8)
    return drawn


def panel(axes: Axes, rows: list[Row], predicted: str, measured: str) -> None:
    """A dot per set, the diagonal, and dotted what training again in another order does."""
    for kind in dict.fromkeys(row["set"] for row in rows if row["fraction"] > 0):
        chosen = [row for row in rows if row["set"] == kind]
        axes.plot([r[predicted] for r in chosen], [r[measured] for r in chosen], ".", label=kind)
    values = [row[predicted] for row in rows if row["fraction"] > 0]
    if values:
        ends = np.array([min(values), max(values)])
        axes.plot(ends, ends, color="gray", linewidth=0.8)
    for number, row in enumerate(row for row in rows if not row["fraction"]):
        label = "all data, another order" if not number else None
        axes.axhline(row[measured], color="gray", linestyle=":", linewidth=0.8, label=label)
