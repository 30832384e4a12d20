"""Table and figure of consistency.py."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from results import Row
from rich.table import Table
from scipy.stats import spearmanr

TITLES = {"convex": "convex head on frozen features", "deep": "network trained from nothing"}
PAIRS = (("predicted_shift", "shift", "shift of the last layer"),
         ("predicted_gap", "gap", "gap of the test loss"))  # fmt: skip


def pairs(rows: list[Row], model: str, predicted: str, measured: str) -> np.ndarray:
    """Predicted and measured values of all pruned sets, shape (2, k)."""
    chosen = [row for row in rows if row["model"] == model and row["fraction"] > 0]
    return np.array([[row[predicted] for row in chosen], [row[measured] for row in chosen]])


def table(rows: list[Row]) -> Table:
    """Rank correlation, slope, and the noise of training again."""
    shown = Table("model", "quantity", "sets", "rank correlation", "slope", "within a factor 2",
                  "noise")  # fmt: skip
    for model in TITLES:
        for predicted, measured, name in PAIRS:
            x, y = pairs(rows, model, predicted, measured)
            if len(x) < 3:
                continue
            again = [abs(r[measured]) for r in rows if r["model"] == model and not r["fraction"]]
            within = np.mean((y / x > 0.5) & (y / x < 2))
            shown.add_row(
                TITLES[model], name, str(len(x)), f"{spearmanr(x, y)[0]:.2f}",
                f"{x @ y / (x @ x):.2f}", f"{within:.0%}",
                f"{np.mean(again):.3g}" if again else "",
            )  # fmt: skip
    return shown


def figure(rows: list[Row]) -> Figure:
    """Measured against predicted, one panel per model and quantity."""
    drawn = Figure(figsize=(9, 8), layout="constrained")
    panels = drawn.subplots(2, 2)
    for line, model in zip(panels, TITLES, strict=True):
        for panel, (predicted, measured, name) in zip(line, PAIRS, strict=True):
            for kind in dict.fromkeys(row["set"] for row in rows if row["fraction"] > 0):
                x, y = pairs([r for r in rows if r["set"] == kind], model, predicted, measured)
                panel.plot(x, y, ".", label=kind)
            x = pairs(rows, model, predicted, measured)[0]
            if len(x):
                panel.axline((0, 0), slope=1, color="gray", linewidth=0.8)
                smallest = np.abs(x).min()
                panel.set_xscale("symlog", linthresh=max(smallest, 1e-4))
                panel.set_yscale("symlog", linthresh=max(smallest, 1e-4))
            for row in rows:
                if row["model"] == model and not row["fraction"]:
                    panel.axhline(row[measured], color="gray", linestyle=":", linewidth=0.8)
            panel.set(title=f"{TITLES[model]}: {name}", xlabel="predicted", ylabel="measured")
    panels[0][0].legend()
    return drawn
