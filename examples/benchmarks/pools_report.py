"""Tables of pools.py."""

from __future__ import annotations

from collections import defaultdict

from results import Row, points, spread
from rich.table import Table


def tables(rows: list[Row]) -> list[Table]:
    """Accuracies and suspects."""
    return [accuracies(rows), suspicions(rows)]


def accuracies(rows: list[Row]) -> Table:
    """What each method keeps and what comes out."""
    shown = Table("pool", "method", "seeds", "bad among kept", "accuracy %", "to fewer epochs",
                  "to random")  # fmt: skip
    groups = defaultdict(list)
    for row in rows:
        groups[row["pool"], row["method"]].append(row)
    for (pool, method), runs in groups.items():
        beside = [
            spread(points(runs, groups.get((pool, other), [])), "+.1f") if method != other else ""
            for other in ("fewer epochs", "random")
        ]
        shown.add_row(
            pool, method, str(len(runs)), f"{spread([100 * r['kept_bad'] for r in runs])} %",
            spread([100 * r["accuracy"] for r in runs]), *beside,
        )  # fmt: skip
    return shown


def suspicions(rows: list[Row]) -> Table:
    """How many of the suspects are bad, by cost, early and late."""
    shown = Table("pool", "suspects: highest", "after the warm-up", "at the end")
    lists = defaultdict(list)
    for row in rows:
        for when, found in row.get("suspects", {}).items():
            for cost, share in found.items():
                lists[row["pool"], cost, when].append(100 * share)
    for pool, cost in dict.fromkeys(key[:2] for key in lists):
        shown.add_row(
            pool, cost, *(f"{spread(lists[pool, cost, when])} %" for when in ("warm-up", "end"))
        )
    return shown
