"""Draws the README's picture from the measured files.

python examples/benchmarks/picture.py --output docs/assets/picture.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator
from results import read
from time_report import OWN, WHOLE, lengths, with_prices

MEASURED = Path(__file__).parent / "measured"
SHARES = (20, 50, 80)
ALL, OURS, TRUTH, RIVAL = "#5b6770", "#00796b", "#b0bec5", "#e08e45"


def junk(axes: Axes) -> None:
    """Accuracy on pools of which a part is junk under wanted labels."""
    rows = read(MEASURED / "pools.jsonl")
    lines = {
        "all data": (ALL, "o-", "all data"),
        "nearest 5 wanted": (RIVAL, "o--", "nearest sure samples"),
        "Target": (OURS, "o-", "Target"),
        "truth known": (TRUTH, "o:", "truth known"),
    }
    for name, (colour, style, label) in lines.items():
        found = [
            100 * mean(
                row["accuracy"] for row in rows
                if (row["pool"], row["method"]) == (f"junk {share} %", name)
            ) for share in SHARES
        ]  # fmt: skip
        axes.plot(SHARES, found, style, color=colour, label=label)
    axes.set(xlabel="junk under wanted labels (%)", ylabel="test accuracy (%)", xticks=SHARES)
    axes.set_title("A pool with 250 sure samples", loc="left")


def faster(axes: Axes) -> None:
    """Accuracy against seconds, one seed, over lengths of training."""
    runs = json.loads((MEASURED / "time_to_accuracy.json").read_text())["runs"]
    for row, label, colour in ((WHOLE, "all data", ALL), (OWN, "hardest 70 % of each epoch", OURS)):
        line = lengths([run for run in with_prices(runs) if run["rate"] == 1], row, seed=0)
        seconds, found = [run["total"] for run in line], [100 * run["accuracy"] for run in line]
        axes.plot(seconds, found, "o-", color=colour, label=label)
    axes.xaxis.set_major_locator(MultipleLocator(200))
    axes.set(xlabel="seconds of one core", ylabel="test accuracy (%)")
    axes.set_title("A network from scratch, 50,000 images", loc="left")


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--output", type=Path, default=Path("runs/picture.png"))
    options = made.parse_args()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    for axes, draw in zip(figure.subplots(1, 2), (junk, faster), strict=True):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.legend(frameon=False, fontsize=8, loc="best")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.output, dpi=180)


if __name__ == "__main__":
    main()
