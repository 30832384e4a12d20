"""Files of any kind, told apart by their headers."""

from __future__ import annotations

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
    try:
        name, _ = kind_of(_head(path))
        if name == SELECTION[0]:
            return Selection.load(path)
        if name == TRAJECTORY[0]:
            return Trajectory.load(path)
        if name == STATE[0] and "scores" not in unpack_state(path.read_bytes()):
            raise ValueError("it is the state of a run, which only that run's callback reads")
        if name == STATE[0]:
            return Scores.load(path, curvature=Unmade())
    except ValueError as error:
        raise _of(path, error) from error
    raise ValueError(f"{path}: this release knows no files of {name!r}")


def read_scores(path: Path) -> Scores:
    """Scores with the curvature that they were made with.

    Raises:
        ValueError: If the file holds something else.
        OSError: If it cannot be read.

    Examples:
        >>> import tempfile, torch
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     pruner.measure(torch.nn.Linear(4, 3)).save(file.name)
        ...     len(read_scores(Path(file.name)))
        60
    """
    found = read(path)
    if not isinstance(found, Scores):
        raise ValueError(f"{path} holds {NAMES[type(found)]}; give a file that Scores.save wrote")
    try:
        return Scores.load(path)
    except ValueError as error:
        raise _of(path, error) from error


def read_complete(path: Path, found: Found) -> Found:
    """What `read` found, of scores with their curvature; without it where it is one of the user's own."""
    if not isinstance(found, Scores):
        return found
    try:
        return read_scores(path)
    except ValueError:
        return found


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
    found: Dataset[Any] = ImageFolder(str(folder))
    return found


def check_room(count: int, each: int) -> None:
    """Check that there is memory for so many things, since a damaged file can claim any number.

    Args:
        count: Number of things.
        each: Bytes that each takes.

    Raises:
        ValueError: If there is not.

    Examples:
        >>> check_room(10**15, each=9)
        Traceback (most recent call last):
        ValueError: 1,000,000,000,000,000 samples take 8.38e+06 GiB, but there are ...
    """
    free = available_bytes()
    if free is not None and count * each > free:
        raise ValueError(
            f"{count:,} samples take {gibibytes(count * each)}, but there are {gibibytes(free)}: take a "
            "larger machine, or a file that is not damaged"
        )


def _head(path: Path) -> bytes:
    """The beginning of a file, up to where its header ends."""
    with path.open("rb") as file:
        length = file.read(8)
        return length + file.read(min(int.from_bytes(length, "little"), LONGEST_HEADER))


def _of(path: Path, error: ValueError) -> ValueError:
    """The same error with the path before it, once."""
    text = str(error)
    return error if text.startswith(str(path)) else ValueError(f"{path}: {text}")
