"""Tables of what `time_to_accuracy` measured."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from statistics import mean, median
from typing import Any

from results import spread
from rich.table import Table

Run = dict[str, Any]
GOALS = (0.86, 0.87, 0.88, 0.89, 0.9, 0.91, 0.92, 0.93)
"""Accuracies to which the time is taken."""
WHOLE, OWN = "all data", "hardest 70 % by its own errors"
"""Rows of several lengths."""


def tables(runs: list[Run], rows: list[str], rate: float | None) -> list[Table]:
    """Accuracy and seconds, headroom, and the sweep.

    Args:
        runs: All that was measured.
        rows: Names of the rows, in their order.
        rate: The learning rate that all rows have, or None while the sweep goes on.
    """
    priced = with_prices(runs)
    found = [run for run in priced if rate is None or run["rate"] == rate or not run["main"]]
    return [
        accuracies(found, rows), gains(found), times(found), headrooms(found, rows), sweep(priced, rows),
    ]  # fmt: skip


def with_prices(runs: list[Run]) -> list[Run]:
    """Each run with the seconds that all its steps would have taken at the median speed of its network.

    Other work on the machine slows now this run and now that one by a few per cent; choosing stays as
    it was measured, and the proxy is added.
    """
    whole = max((run["width"] for run in runs), default=0.0)  # proxies are narrower
    speeds, made = defaultdict(list), [{**run, "main": run["width"] == whole} for run in runs]
    for run in made:
        run["network"] = "" if run["main"] else run["row"]
        speeds[run["network"]].append((run["seconds"] - run["choosing"]) / run["steps"])
    for run in made:
        run["training"] = run["steps"] * median(speeds[run["network"]])
    for run in made:
        proxy = [r for r in made if r["row"] == run["proxy"] and r["seed"] == run["seed"]]
        run["proxy_seconds"] = proxy[0]["training"] if proxy else 0.0
        run["total"] = run["training"] + run["choosing"] + run["proxy_seconds"]
    return made


def lengths(runs: list[Run], row: str, seed: int) -> list[Run]:
    """Runs of a row of all lengths, the shortest first."""
    names = [run for run in runs if run["row"] == row or run["row"].startswith(f"{row}, ")]
    found = [
        run
        for run in names
        if run["seed"] == seed and (run["row"] == row or "times as long" in run["row"])
    ]
    return sorted(found, key=lambda run: run["length"])


def at_equal_seconds(run: Run, runs: list[Run]) -> tuple[float, bool] | None:
    """Points above all data of this seed for as many seconds; None if that was not run, or only longer.

    Between two lengths accuracy is a line in the logarithm of the seconds.

    Returns:
        The points, and whether the run took longer than the longest of all data: then it is compared with
        that, and the points are at most so many.
    """
    line = [(r["total"], r["accuracy"]) for r in lengths(runs, WHOLE, run["seed"])]
    seconds, found = run["total"], run["accuracy"]
    for (t0, a0), (t1, a1) in pairwise(line):
        if 0.98 * t0 <= seconds <= t1:
            part = math.log(seconds / t0) / math.log(t1 / t0)
            return 100 * (found - a0 - part * (a1 - a0)), False
    if not line or seconds < 0.98 * line[-1][0]:
        return None
    return 100 * (found - line[-1][1]), seconds > 1.02 * line[-1][0]


def seconds_to(goal: float, line: list[Run]) -> float | None:
    """Seconds to an accuracy, on the line between two lengths, or None outside of them."""
    for one, other in pairwise(line):
        a0, a1 = one["accuracy"], other["accuracy"]
        if a0 <= goal <= a1 and a0 < a1:
            part = (goal - a0) / (a1 - a0)
            return float(one["total"] * (other["total"] / one["total"]) ** part)
    return None


def times(runs: list[Run]) -> Table:
    """Seconds to an accuracy, all data beside the hardest; both at the best rate of all data."""
    table = Table()
    for name in ("time to", "all data, s", "hardest by its own errors, s", "ratio"):
        table.add_column(name)
    for goal in GOALS:
        found = []
        for seed in sorted({run["seed"] for run in runs}):
            pair = [seconds_to(goal, lengths(runs, row, seed)) for row in (WHOLE, OWN)]
            if all(pair):
                found.append(pair)
        if found:
            cells = [spread([pair[k] for pair in found], ".0f") for k in range(2)]
            table.add_row(
                f"{goal:.0%}", *cells, spread([own / whole for whole, own in found], ".2f")
            )
    return table


def gains(runs: list[Run]) -> Table:
    """What leaving out the easy gains at equal steps, beside the headroom of all data."""
    table = Table()
    names = (
        "epochs", "all data, headroom half-way", "in the last epoch", "accuracy %", "hardest 70 %, accuracy %",
        "gained",
    )  # fmt: skip
    for name in names:
        table.add_column(name)
    for length in sorted({run["length"] for run in runs}):
        pairs = [
            (whole, own)
            for seed in sorted({run["seed"] for run in runs})
            for whole in lengths(runs, WHOLE, seed) if whole["length"] == length
            for own in lengths(runs, OWN, seed) if own["length"] == length
        ]  # fmt: skip
        if not pairs:
            continue
        curves = [whole["headrooms"] for whole, _ in pairs]
        points = [[100 * run["accuracy"] for run in side] for side in zip(*pairs, strict=True)]
        table.add_row(
            str(length), f"{mean(c[len(c) // 2] for c in curves):.3f}", f"{mean(c[-1] for c in curves):.3f}",
            *(spread(side, ".2f") for side in points),
            spread([b - a for a, b in zip(*points, strict=True)], "+.2f"),
        )  # fmt: skip
    return table


def accuracies(runs: list[Run], rows: list[str]) -> Table:
    table = Table()
    names = (
        "", "steps", "accuracy %", "of the seeds", "to all data, equal steps", "training s",
        "choosing s", "recording %", "proxy s", "all s", "to all data, equal seconds",
    )  # fmt: skip
    for name in names:
        table.add_column(name)
    base = {run["seed"]: run["accuracy"] for run in runs if run["row"] == WHOLE}
    for row in rows:
        mine = sorted((run for run in runs if run["row"] == row), key=lambda run: run["seed"])
        if not mine:
            continue
        beside = [100 * (r["accuracy"] - base[r["seed"]]) for r in mine if r["seed"] in base]
        line = [run["row"] for seed in base for run in lengths(runs, WHOLE, seed)]
        against = [] if row in line or not mine[0]["main"] else mine
        equal = [found for run in against if (found := at_equal_seconds(run, runs))]
        most = "at most " if any(beyond for _, beyond in equal) else ""
        recording = 100 * mean(run["recording"] / run["seconds"] for run in mine)
        table.add_row(
            row, str(mine[0]["steps"]), spread([100 * run["accuracy"] for run in mine], ".2f"),
            " ".join(f"{100 * run['accuracy']:.2f}" for run in mine),
            spread(beside, "+.2f") if row != WHOLE else "",
            f"{mean(r['training'] for r in mine):.0f}", f"{mean(r['choosing'] for r in mine):.1f}",
            f"{recording:.2f}", f"{mean(r['proxy_seconds'] for r in mine):.0f}",
            f"{mean(r['total'] for r in mine):.0f}", most + spread([points for points, _ in equal], "+.2f"),
        )  # fmt: skip
    return table


def headrooms(runs: list[Run], rows: list[str]) -> Table:
    """Of what each epoch saw: where the easy are left out, that of the rest."""
    shares = (0, 0.25, 0.5, 0.75, 1)
    table = Table()
    for name in ("headroom", "first epoch", "a quarter", "half", "three quarters", "last epoch"):
        table.add_column(name)
    for row in rows:
        mine = [run["headrooms"] for run in runs if run["row"] == row]
        if mine:
            cells = [[one[round(share * (len(one) - 1))] for one in mine] for share in shares]
            table.add_row(row, *(f"{mean(cell):.3f}" for cell in cells))
    return table


def sweep(runs: list[Run], rows: list[str]) -> Table:
    """The first seed at the learning rates that were tried."""
    rates = sorted({run["rate"] for run in runs})
    table = Table()
    for name in ("accuracy % by learning rate", *(f"x {rate:g}" for rate in rates)):
        table.add_column(name)
    for row in rows:
        mine = [run for run in runs if run["row"] == row]
        if len({run["rate"] for run in mine}) < 2:
            continue
        first = min(run["seed"] for run in mine)
        by_rate = {run["rate"]: run["accuracy"] for run in mine if run["seed"] == first}
        table.add_row(
            row, *(f"{100 * by_rate[rate]:.2f}" if rate in by_rate else "" for rate in rates)
        )
    return table
