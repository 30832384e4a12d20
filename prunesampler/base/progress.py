"""Progress of long work: how it is reported, and the bar that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from tqdm import tqdm

Progress = Callable[[int, int], None]
"""Called now and then with the number of steps done and the number in all."""


def progress_bar(name: str, total: int, shown: bool) -> tqdm[Any]:
    """A bar on standard error that leaves no line behind.

    Examples:
        >>> with progress_bar("measuring", total=3, shown=False) as bar:
        ...     advance(bar)(2, 3)
    """
    return tqdm(total=total, desc=name, disable=not shown, leave=False, file=sys.stderr)


def advance(bar: tqdm[Any]) -> Progress:
    """A function that moves a bar to the number of steps done.

    Examples:
        >>> with progress_bar("solving", total=10, shown=False) as bar:
        ...     advance(bar)(5, 20)
        ...     bar.total
        20
    """

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show
