"""Tables of pools.py.

    python examples/benchmarks/pools_report.py examples/benchmarks/measured/pools.jsonl

prints more of each method: how much is bad among the kept, how much of the bad was found, the seconds.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median

from results import Row, points, read, show, spread
from rich.table import Table

Groups = dict[tuple[str, str], list[Row]]
"""Runs by pool and method."""
RIVALS = ("all data", "truth known")
TOGETHER = (("junk", "other labels"), ("wrong labels", "clean"), ("near copies", "long tail"))
"""Pools that share a table, by how their names begin."""
NOT_TOLD = (
    "audit, off-target", "audit, suspects", "suspects by halves", "confident learning",
)  # fmt: skip
"""Methods that find out by themselves how much of a pool to drop."""


def tables(rows: list[Row]) -> list[Table]:
    """What comes out by method and pool, and what those dropped that were not told how much."""
    groups = grouped(rows)
    found = []
    for kinds in TOGETHER:
        some = {key: runs for key, runs in groups.items() if key[0].startswith(kinds)}
        if some:
            found.append(by_pool("accuracy % (to all data)", some, gained))
    free = {key: runs for key, runs in groups.items() if key[1] in NOT_TOLD}
    return [*found, by_pool("dropped % (of them bad)", free, dropped)] if free else found


def grouped(rows: list[Row]) -> Groups:
    groups = defaultdict(list)
    for row in rows:
        groups[row["pool"], row["method"]].append(row)
    return groups


def by_pool(title: str, groups: Groups, cell: Callable[[Groups, str, str], str]) -> Table:
    """A row for each method, a column for each pool."""
    pools, methods = (list(dict.fromkeys(names)) for names in zip(*groups, strict=True))
    shown = Table(title, *pools)
    for method in methods:
        cells = (cell(groups, pool, method) if (pool, method) in groups else "" for pool in pools)
        shown.add_row(method, *cells)
    return shown


def gained(groups: Groups, pool: str, method: str) -> str:
    runs = groups[pool, method]
    accuracy = spread([100 * row["accuracy"] for row in runs])
    beside = spread(points(runs, groups.get((pool, "all data"), [])), "+.1f")
    whole = method == "all data" or not beside
    return accuracy if whole else f"{accuracy.split(' ±')[0]} ({beside})"


def dropped(groups: Groups, pool: str, method: str) -> str:
    runs = groups[pool, method]
    bad = share(runs, "precision")
    return share(runs, "dropped") + (f" ({bad})" if bad else "")


def accuracies(rows: list[Row]) -> Table:
    """Accuracies beside those of all data and of the truth, and how good the dropped were to drop."""
    shown = Table("pool", "method", "seeds", "accuracy %", "to all data", "to the truth",
                  "bad among kept %", "dropped %", "precision %", "recall %", "seconds")  # fmt: skip
    groups = grouped(rows)
    order = list(dict.fromkeys(pool for pool, _ in groups))
    for (pool, method), runs in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        beside = [
            spread(points(runs, groups.get((pool, rival), [])), "+.1f") if method != rival else ""
            for rival in RIVALS
        ]
        shown.add_row(
            pool, method, str(len(runs)), spread([100 * row["accuracy"] for row in runs]), *beside,
            *(share(runs, name) for name in ("kept_bad", "dropped", "precision", "recall")),
            f"{median(row['choosing_seconds'] for row in runs):.1f}",
        )  # fmt: skip
    return shown


def share(runs: list[Row], name: str) -> str:
    """Mean in percent over the runs that have it, or nothing."""
    return spread([100 * row[name] for row in runs if row[name] is not None]).split(" ±")[0]


if __name__ == "__main__":
    show(accuracies(read(*map(Path, sys.argv[1:]))))
