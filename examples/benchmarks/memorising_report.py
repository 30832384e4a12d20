"""The table of memorising.py."""

from __future__ import annotations

from collections import defaultdict

from results import Row, points, spread
from rich.table import Table

WHOLE = "all data"


def tables(rows: list[Row]) -> list[Table]:
    """Accuracy beside the best of all data, whose length and learning rate were swept.

    "Features right" is the share of the sure samples whose class a layer on the features tells that judge.
    """
    table = Table()
    for name in (
        "bad", "method", "rate", "seeds", "accuracy %", "to the best of all data", "dropped %", "bad among kept %",
        "features right %", "seconds",
    ):  # fmt: skip
        table.add_column(name)
    groups = defaultdict(list)
    for row in rows:
        groups[row["share"], row["method"], row["rate"]].append(row)
    for (share, method, rate), runs in sorted(groups.items(), key=lambda group: group[0][0]):
        whole = [
            found for key, found in groups.items() if key[0] == share and key[1].startswith(WHOLE)
        ]
        best = max(
            whole, key=lambda found: sum(r["accuracy"] for r in found) / len(found), default=[]
        )
        gained = "" if runs is best else spread(points(runs, best), "+.2f")
        told = [100 * r["right"] for r in runs if r.get("right") is not None]
        table.add_row(
            f"{share:.0%}", method, f"{rate:g}", str(len(runs)), spread([100 * r["accuracy"] for r in runs], ".2f"),
            gained, *(spread([100 * r[key] for r in runs]) for key in ("dropped", "kept_bad")),
            spread(told) if told else "", spread([r["seconds"] for r in runs], ".0f"),
        )  # fmt: skip
    return [table]
