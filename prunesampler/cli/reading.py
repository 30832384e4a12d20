"""Files of any kind, told apart by their headers."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from prunesampler.base.files import STATE, kind_of, unpack_state
from prunesampler.base.memory import available_bytes, gibibytes
from prunesampler.influence.curvature import Curvature
from prunesampler.influence.factorised import IdentityFactorised
from prunesampler.influence.sequences import Measured, Rows
from prunesampler.select.scores import Scores
from prunesampler.select.selection import KIND as SELECTION
from prunesampler.select.selection import Selection
from prunesampler.train.trajectory import KIND as TRAJECTORY
from prunesampler.train.trajectory import Trajectory

Found = Selection | Scores | Trajectory
"""What a file can hold."""
LONGEST_HEADER = 10**8
"""Bytes; safetensors refuses longer ones."""
COPIES = 2
"""What is in memory of a file while it is read: its bytes, and tensors of them."""
NAMES = {Selection: "a selection", Scores: "scores", Trajectory: "a trajectory"}


class Unmade(Curvature):
    """No curvature of any samples, for those who only look at what was measured.

    The true one takes a minute for a large layer, and cannot be had where it is one of the user's own.
    """

    def factorise(self, measurements: Measured, damping: float | None = None) -> IdentityFactorised:
        """Nothing is computed."""
        del measurements, damping
        return _AsTheyAre()


class _AsTheyAre(IdentityFactorised):
    """Leaves rows of every kind as they are."""

    def whiten(self, rows: Rows) -> Any:
        """The rows themselves."""
        return rows


def read(path: Path) -> Found:
    """What a file holds; the curvature of scores is not made, which can take a minute.

    Raises:
        ValueError: If it is not a whole file of this package, or the state of a run.
        OSError: If it cannot be read.

    Examples:
        >>> import tempfile, torch
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     Trajectory(torch.ones(2, 3)).save(file.name)
        ...     read(Path(file.name)).num_samples
        3
    """
    return _read(path, Unmade())


def read_whole(path: Path) -> Found:
    """What a file holds; scores with the curvature that they were made with.

    Raises:
        ValueError: If it is not a whole file of this package, or names a curvature of the user's own.
        OSError: If it cannot be read.

    Examples:
        >>> import tempfile, torch
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pruner.measure(torch.nn.Linear(4, 3)).save(file.name)
        ...     read_whole(Path(file.name)).curvature
        AutoCurvature(damping=None)
    """
    return _read(path, None)


def read_known(path: Path) -> Found:
    """What a file holds; scores with their curvature, unless it is one of the user's own.

    Raises:
        ValueError: If it is not a whole file of this package.
        OSError: If it cannot be read.

    Examples:
        >>> read_known(Path("nowhere"))
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] No such file or directory: 'nowhere'
    """
    try:
        return read_whole(path)
    except ValueError:
        return read(path)


def as_scores(path: Path, found: Found) -> Scores:
    """What a file holds, if these are scores.

    Raises:
        ValueError: If it holds something else.

    Examples:
        >>> import torch
        >>> as_scores(Path("seen"), Trajectory(torch.ones(2, 3)))
        Traceback (most recent call last):
        ValueError: seen holds a trajectory; give a file that Scores.save wrote
    """
    if not isinstance(found, Scores):
        raise ValueError(f"{path} holds {NAMES[type(found)]}; give a file that Scores.save wrote")
    return found


def _read(path: Path, curvature: Curvature | None) -> Found:
    """What a file holds; of scores with this curvature, or with that which they were made with.

    Raises:
        ValueError: If it is not a whole file of this package, or the state of a run.
    """
    try:
        name, _ = kind_of(_head(path))
        if name == SELECTION[0]:
            return Selection.load(path)
        if name == TRAJECTORY[0]:
            return Trajectory.load(path)
        if name == STATE[0]:
            return _scores(path, curvature)
    except ValueError as error:
        raise _of(path, error) from error
    raise ValueError(f"{path}: this release knows no files of {name!r}")


def _scores(path: Path, curvature: Curvature | None) -> Scores:
    """Scores, which are written as the states of runs are.

    Raises:
        ValueError: If the file is damaged, or such a state.
    """
    try:
        return Scores.load(path, curvature=curvature)
    except ValueError as error:
        if "scores" in unpack_state(path.read_bytes()):
            raise
        raise ValueError(
            "it is the state of a run, which only that run's callback reads"
        ) from error


def size_of(found: Found) -> int:
    """Number of samples.

    Examples:
        >>> import torch
        >>> size_of(Trajectory(torch.ones(2, 3)))
        3
    """
    return len(found) if isinstance(found, Scores) else found.num_samples


def read_images(folder: Path) -> Dataset[Any]:
    """Images in one folder for each class, in the order of torchvision's ImageFolder.

    Raises:
        ImportError: If torchvision is not installed.
        OSError: If there are no images.
    """
    try:
        from torchvision.datasets import ImageFolder
    except ImportError as error:
        raise ImportError("--images needs torchvision: pip install torchvision") from error
    found: Dataset[Any] = ImageFolder(str(folder), loader=_image)
    return found


def _image(path: str) -> Any:
    """An image in a file; a pipe of that name, which may never end, is not read.

    Raises:
        ValueError: If it is no file.
    """
    from torchvision.datasets.folder import default_loader

    if not os.path.isfile(path):
        raise ValueError("it is no file")
    return default_loader(path)


def check_memory(needed: int, what: str) -> None:
    """Check that there is memory, since a damaged file can claim any size.

    Args:
        needed: Number of bytes.
        what: What takes them.

    Raises:
        ValueError: If there is less.

    Examples:
        >>> check_memory(10**15, "ten samples")
        Traceback (most recent call last):
        ValueError: ten samples take 9.31e+05 GiB, but there are ...
    """
    free = available_bytes()
    if free is not None and needed > free:
        raise ValueError(
            f"{what} take {gibibytes(needed)}, but there are {gibibytes(free)}: take a larger machine, or a "
            "file that is not damaged"
        )


def _head(path: Path) -> bytes:
    """The beginning of a file, up to where its header ends.

    Raises:
        ValueError: If it is none on a disk, which can have no end, or it is larger than the memory.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise ValueError("it is a pipe or a device; write what it gives into a file, and give that")
    check_memory(found.st_size * COPIES, "its bytes and tensors")
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))


def _of(path: Path, error: ValueError) -> ValueError:
    """The same error with the path before it, once."""
    text = str(error)
    return error if text.startswith(str(path)) else ValueError(f"{path}: {text}")
