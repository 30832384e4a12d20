"""How much memory there is."""

from __future__ import annotations

import math
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from torch import Tensor

GIB = 2**30
ON_DISK = 2**26
"""Tensors of fewer bytes stay in memory."""


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a process could still take without swapping, or None where nobody says.

    On Linux: what the kernel calls available, or less where a control group is limited to less.

    Args:
        root: Where the files of the kernel are.

    Examples:
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


class Room:
    """Where tensors of one row per sample are put: in memory, or the large ones on disk.

    A file on disk has no name, so nobody else finds it, and nothing of it is left when the process
    ends, however it ends.

    Args:
        folder: Folder for the files, or None to use memory alone.

    Raises:
        ValueError: If the folder does not exist, or no file can be written to it.

    Examples:
        >>> Room().empty((2, 3), torch.float16).shape
        torch.Size([2, 3])
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        if folder is not None:
            try:
                TemporaryFile(dir=folder).close()
            except OSError as error:
                raise ValueError(
                    f"storage={str(folder)!r} cannot be written to ({error.strerror}); name a folder that "
                    "exists, on a disk with room for the layer's inputs of all samples"
                ) from error

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU whose numbers are not set yet.

        Raises:
            ValueError: If the disk has no room for it.
        """
        size = math.prod(shape) * dtype.itemsize
        if self.folder is None or size < ON_DISK:
            return torch.empty(shape, dtype=dtype)
        free = shutil.disk_usage(self.folder).free
        if size > free:
            raise ValueError(
                f"storage={str(self.folder)!r} needs {gibibytes(size)}, but {gibibytes(free)} are free there; "
                "name a folder on another disk"
            )
        with TemporaryFile(dir=self.folder) as file:
            os.truncate(file.fileno(), size)
            held = np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
        return torch.from_numpy(held).view(dtype).reshape(shape)


def gibibytes(count: float) -> str:
    """A number of bytes in GiB, to three digits.

    Examples:
        >>> gibibytes(5 * 2**29)
        '2.5 GiB'
    """
    return f"{count / GIB:.3g} GiB"


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
