"""How much memory there is."""

from __future__ import annotations

import re
from pathlib import Path

GIB = 2**30


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a process could still take without swapping, or None where nobody says.

    On Linux: what the kernel calls available, or less where a control group is limited to less.

    Args:
        root: Where the files of the kernel are.

    Example:
        >>> found = available_bytes()
        >>> found is None or found > 0
        True
    """
    limits = []
    text = _read(root / "proc/meminfo")
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", text, re.MULTILINE)
    if found:
        limits.append(1024 * int(found[1]))
    limit, used = (
        _read(root / "sys/fs/cgroup" / name) for name in ("memory.max", "memory.current")
    )
    if limit.isdecimal() and used.isdecimal():
        limits.append(max(0, int(limit) - int(used)))
    return min(limits, default=None)


def gibibytes(count: float) -> str:
    """A number of bytes in GiB, to three digits.

    Example:
        >>> gibibytes(5 * 2**29)
        '2.5 GiB'
    """
    return f"{count / GIB:.3g} GiB"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
