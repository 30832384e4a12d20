"""Mean and standard deviation over several runs of the main job, from their metrics.json files.

Differences to fewer epochs are taken seed by seed, since runs of one seed share their warm-up.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean, stdev

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


def spread(values: list[float], form: str) -> str:
    deviation = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{mean(values):{form}}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "files", type=Path, nargs="+", help="metrics.json of runs that differ in seed"
    )
    runs = [json.loads(file.read_text()) for file in parser.parse_args().files]
    settings = [
        {k: v for k, v in run["settings"].items() if k not in ("seed", "output_dir")}
        for run in runs
    ]
    if any(other != settings[0] for other in settings):
        raise SystemExit(
            "these runs differ in more than seed and output folder; nothing to average"
        )
    table = Table(box=SIMPLE, title=f"{len(runs)} seeds")
    for name in ("method", "accuracy %", "to fewer epochs", "steps", "seconds", "speed-up"):
        table.add_column(name, no_wrap=True)
    for method in runs[0]["results"]:
        rows = [run["results"][method] for run in runs]
        bases = [run["results"]["fewer"] for run in runs]
        full = [run["results"]["all"] for run in runs]
        gaps = [r["test_accuracy"] - b["test_accuracy"] for r, b in zip(rows, bases, strict=True)]
        speeds = [f["seconds"] / r["seconds"] for f, r in zip(full, rows, strict=True)]
        table.add_row(
            method,
            spread([100 * r["test_accuracy"] for r in rows], ".1f"),
            ""
            if method == "fewer"
            else spread([100 * gap for gap in gaps], "+.1f").replace("± +", "± "),
            f"{rows[0]['steps']:,}",
            spread([r["seconds"] for r in rows], ".0f"),
            f"{mean(speeds):.2f}x",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
