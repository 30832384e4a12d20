"""What training saw of every sample, epoch by epoch, in memory and on disk."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.files import pack, unpack, write_atomically
from prunesampler.base.processes import Group
from prunesampler.influence.headroom import COSTS, PAYS, advice, headroom
from prunesampler.page.drawings import draw_headrooms
from prunesampler.page.tables import as_html

KIND = ("prunesampler.trajectory", 1)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """The error of every sample in every epoch of a run.

    A sample's error is the norm of the gradient of its loss with respect to the outputs of the last layer,
    as training met it: augmented, and at that moment of the epoch.

    Args:
        errors: Float32, shape (epochs, n), at least 0; NaN where an epoch did not see a sample.
        exact: Whether errors are in units of the loss. Otherwise they are shares of the mean of their
            batch, since the factor between a loss and its gradient was not known.
        layer: Name of the layer, or None.

    Raises:
        ValueError: For another shape, or errors below zero or infinite.

    Examples:
        >>> found = Trajectory(torch.tensor([[0.5, 0.9], [0.1, float("nan")]]))
        >>> found.last_seen().tolist()
        [0.1..., 0.8...]
        >>> found.headrooms()
        [0.64..., 0.5]
    """

    errors: Tensor
    exact: bool = True
    layer: str | None = None

    def __post_init__(self) -> None:
        errors = self.errors
        if errors.dim() != 2 or errors.dtype != torch.float32 or not errors.shape[1]:
            raise ValueError(
                f"errors must be float32 of shape (epochs, samples), got {errors.dtype} of shape "
                f"{tuple(errors.shape)}"
            )
        if bool((errors < 0).any()) or bool(errors.isinf().any()):
            raise ValueError("errors must be at least zero and finite, or NaN where unknown")

    def __len__(self) -> int:
        """Number of epochs."""
        return len(self.errors)

    @property
    def num_samples(self) -> int:
        """Number n of samples."""
        return self.errors.shape[1]

    def last_seen(self, epochs: int | None = None) -> Tensor:
        """The error of each sample when it was last seen, shape (n,); NaN if never.

        Args:
            epochs: Number of epochs to look at, from the first; by default all.
        """
        found = torch.full((self.num_samples,), math.nan)
        for row in self.errors[:epochs]:
            found = torch.where(row.isnan(), found, row)
        return found

    def unseen_for(self) -> Tensor:
        """Number of epochs since each sample was last seen, int64, shape (n,); all if never."""
        ages = torch.zeros(self.num_samples, dtype=torch.int64)
        for row in self.errors:
            ages = torch.where(row.isnan(), ages + 1, 0)
        return ages

    def headrooms(self) -> list[float]:
        """The headroom of every epoch (`prunesampler.influence.headroom`)."""
        return [headroom(row) for row in self.errors]

    def __str__(self) -> str:
        seen = float((~self.errors.isnan()).float().mean()) if len(self) else 0.0
        last = f"; at the end {advice(self.headrooms()[-1])}" if len(self) else ""
        return f"{len(self)} epochs of {self.num_samples} samples, {seen:.0%} seen{last}"

    def plot(self, ax: Any = None) -> Any:
        """Draw the headroom of every epoch; return the matplotlib axes.

        Args:
            ax: Axes to draw on; by default new ones, whose ``figure`` can be saved.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        return draw_headrooms(ax, self.headrooms(), COSTS, PAYS)

    def _repr_html_(self) -> str:
        return as_html(str(self))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file of ``2 epochs n`` bytes; a kill leaves the old one or the new one."""
        write_atomically(Path(path), self.to_bytes())

    def to_bytes(self) -> bytes:
        """The content of a file: half precision, each epoch in units of its largest error."""
        known = self.errors.nan_to_num(0.0)
        units = known.amax(1) if len(self) else torch.zeros(0)
        units = units.clamp(min=torch.finfo(torch.float32).tiny)
        halves = (self.errors / units[:, None]).half()
        header = {"exact": self.exact, "layer": self.layer}
        return pack(KIND, header, {"errors": halves, "units": units})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trajectory:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: If the file is damaged, or not one of these.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    @classmethod
    def from_bytes(cls, data: bytes) -> Trajectory:
        """Read what :meth:`to_bytes` returned.

        Raises:
            ValueError: If it is damaged, or not one of these.
        """
        header, tensors = unpack(KIND, data)
        halves, units, exact, layer = (
            tensors.get("errors"), tensors.get("units"), header.get("exact"), header.get("layer")
        )  # fmt: skip
        whole = (
            isinstance(halves, Tensor) and halves.dtype == torch.float16 and halves.dim() == 2
            and isinstance(units, Tensor) and units.dtype == torch.float32
            and units.shape == halves.shape[:1] and isinstance(exact, bool)
            and (layer is None or isinstance(layer, str))
        )  # fmt: skip
        if not whole or halves is None or units is None or exact is None:
            raise ValueError(f"not a whole file of {KIND[0]}")
        return cls(halves.float() * units[:, None], exact, layer)

    def check(self, num_samples: int, epochs: int = 1) -> None:
        """Check that it is of this many samples, and of at least so many epochs.

        Raises:
            ValueError: If it is not.
        """
        if self.num_samples != num_samples:
            raise ValueError(
                f"the trajectory is of {self.num_samples} samples, the dataset has {num_samples}; record "
                "it on the dataset that you train on"
            )
        if len(self) < epochs:
            raise ValueError(
                f"the trajectory has {len(self)} epochs, but {epochs} are needed; record a longer run"
            )


def state_of(trajectory: Trajectory, path: Path | None) -> dict[str, Any]:
    """A state that holds a trajectory or, where a file does, names that and how it begins.

    Examples:
        >>> state = state_of(Trajectory(torch.ones(2, 3)), Path("run.safetensors"))
        >>> state["file"], state["epochs"]
        ('run.safetensors', 2)
    """
    if path is not None:
        begins = _hash(trajectory.errors)
        return {"file": path.name, "epochs": len(trajectory), "begins": begins}
    return {"trajectory": torch.frombuffer(bytearray(trajectory.to_bytes()), dtype=torch.uint8)}


def from_state(state: Mapping[str, Any], path: Path | None, num_samples: int) -> Trajectory:
    """The trajectory of a state, from itself or from the file, which may have gone on since.

    Raises:
        ValueError: If the file is not there, damaged, of another dataset or of another run.

    Examples:
        >>> len(from_state(state_of(Trajectory(torch.ones(2, 3)), None), None, 3))
        2
    """
    if "trajectory" in state:
        found = Trajectory.from_bytes(state["trajectory"].numpy().tobytes())
    elif path is None or not path.exists():
        raise ValueError(
            f"the trajectory of this state is in a file of its own, {state.get('file')}; give the recorder "
            "the path= that the run had"
        )
    else:
        found = Trajectory.load(path)
    epochs = state.get("epochs", 0)
    found.check(num_samples, epochs)
    if "begins" in state and _hash(found.errors[:epochs]) != state["begins"]:
        raise ValueError(
            f"{path} holds the trajectory of another run than this state; give the recorder the file of this run"
        )
    return found


def _hash(errors: Tensor) -> str:
    """A hash of epochs, in half precision, as files have them: what was read from one has the same."""
    units = errors.nan_to_num(0.0).amax(1, keepdim=True).clamp(min=1e-30) if len(errors) else errors
    return hashlib.blake2b((errors / units).half().numpy().tobytes(), digest_size=16).hexdigest()


def joined(rows: Sequence[Tensor], exact: bool, layer: str | None, num_samples: int) -> Trajectory:
    """A trajectory of the epochs that were recorded, each of shape (n,).

    Examples:
        >>> len(joined([torch.ones(3)], True, "fc", 3))
        1
    """
    errors = torch.stack(list(rows)) if rows else torch.zeros(0, num_samples)
    return Trajectory(errors, exact, layer)


def merged(group: Group, row: Tensor, good: bool, exact: bool | None) -> bytes:
    """A trajectory of one epoch as bytes, from what all processes saw; empty if one could not record.

    Args:
        group: The processes.
        row: Errors that this process saw, shape (n,).
        good: Whether it could record.
        exact: Whether its errors are in units of the loss; None if it saw none.

    Examples:
        >>> from prunesampler.base.processes import LocalGroup
        >>> data = merged(LocalGroup(), torch.tensor([0.5, 1.0]), True, True)
        >>> Trajectory.from_bytes(data).errors
        tensor([[0.5000, 1.0000]])
    """
    ranks = [torch.tensor([rank]) for rank in range(group.world)]
    states = group.gather(torch.tensor([[good, bool(exact)]]), ranks)
    rows = group.gather(row[None], ranks)
    whole: bytes | None = None
    if states is not None and rows is not None:
        alike = len(set(states[:, 1].tolist())) == 1
        # Where two processes saw a sample, as padding has it, the mean.
        seen = Trajectory(rows.nanmean(0, keepdim=True)).to_bytes()
        whole = b"+" + seen if bool(states[:, 0].all()) and alike else b"-"
    return group.broadcast_bytes(whole)[1:]  # gloo sends no empty message
