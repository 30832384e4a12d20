"""Tables of pools.py."""

from __future__ import annotations

from collections import defaultdict
from statistics import median

from results import Row, points, spread
from rich.table import Table

RIVALS = ("all data", "truth known")


def tables(rows: list[Row]) -> list[Table]:
    """What comes out, and what was dropped for it."""
    return [accuracies(rows)]


def accuracies(rows: list[Row]) -> Table:
    """Accuracies beside those of all data and of the truth, and how good the dropped were to drop."""
    shown = Table("pool", "method", "seeds", "accuracy %", "to all data", "to the truth",
                  "bad among kept %", "dropped %", "precision %", "recall %", "seconds")  # fmt: skip
    groups = defaultdict(list)
    for row in rows:
        groups[row["pool"], row["method"]].append(row)
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
