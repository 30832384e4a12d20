"""Progress of long work: what reports it, and the bar that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

Progress = Callable[[int, int], None]
"""Called now and then with the steps done and the steps in all."""


def progress_bar(name: str, total: int, shown: bool) -> tqdm[Any]:
    """A bar on standard error that leaves no line behind."""
    return tqdm(total=total, desc=name, disable=not shown, leave=False, file=sys.stderr)


def advance(bar: tqdm[Any]) -> Progress:
    """A function that moves a bar to the steps done."""

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show
