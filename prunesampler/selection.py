"""What to prune and what was pruned: budgets, selections, and selections on disk."""

from __future__ import annotations

import json
import math
import operator
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

FORMAT = "prunesampler.selection"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much to prune. Give exactly one of ``fraction``, ``count`` and ``epsilon``.

    Args:
        fraction: prune this share of the whole dataset, in (0, 1), rounded to whole samples.
        count: prune exactly this many samples.
        epsilon: prune as many samples as can be found whose predicted (first-order) parameter
            shift has a norm of at most this, in the units of the scored layer's parameters. It
            bounds a prediction, not the accuracy of a network that is retrained.
        max_fraction: with ``epsilon``, never prune more than this share. Influences sum to zero,
            so without a cap "prune everything" would satisfy any epsilon.
        min_per_class: keep at least this many samples of every class (all of a smaller class).
            Where classes are unknown a floor of one does nothing and a higher one is an error.

    Raises:
        ValueError: for a value out of range, or not exactly one of the three.
        TypeError: for a value that is no number.
    """

    fraction: float | None = None
    count: int | None = None
    epsilon: float | None = None
    max_fraction: float = 0.9
    min_per_class: int = 1

    def __post_init__(self) -> None:
        given = [k for k in ("fraction", "count", "epsilon") if getattr(self, k) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a budget takes exactly one of fraction, count and epsilon, got {given or 'none'}"
            )
        for name in ("fraction", "epsilon", "max_fraction"):
            self._convert(name, float)
        for name in ("count", "min_per_class"):
            self._convert(name, operator.index)
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise ValueError(
                f"fraction must lie between 0 and 1, got {self.fraction}; 0.4 prunes 40 %"
            )
        if self.count is not None and self.count < 1:
            raise ValueError(f"count must be a whole number of at least 1, got {self.count}")
        if self.epsilon is not None and not 0 <= self.epsilon < math.inf:
            raise ValueError(
                f"epsilon must be zero or more and finite, got {self.epsilon}; it bounds a norm"
            )
        if not 0 < self.max_fraction < 1:
            raise ValueError(f"max_fraction must lie between 0 and 1, got {self.max_fraction}")
        if self.min_per_class < 0:
            raise ValueError(f"min_per_class must be zero or more, got {self.min_per_class}")

    def _convert(self, name: str, kind: Callable[[Any], float]) -> None:
        """Turn numbers of NumPy and torch into Python's, so that a budget can be saved."""
        value = getattr(self, name)
        if value is None:
            return
        try:
            if isinstance(value, (str, bool)):
                raise TypeError
            object.__setattr__(self, name, kind(value))
        except TypeError as error:
            what = "a whole number" if kind is operator.index else "a number"
            raise TypeError(f"{name} must be {what}, got {value!r}") from error

    def size(self, num_samples: int) -> int:
        """Number of samples to prune out of ``num_samples``; with ``epsilon``, the most.

        Raises:
            ValueError: when that is none or all of them.
        """
        if self.count is not None:
            size, asked = self.count, f"count={self.count}"
        elif self.fraction is not None:
            size, asked = round(self.fraction * num_samples), f"fraction={self.fraction}"
        else:
            size = math.floor(self.max_fraction * num_samples + 1e-9)
            asked = f"max_fraction={self.max_fraction}"
        if num_samples < 2:
            raise ValueError(f"a dataset of {num_samples} sample cannot be pruned")
        if not 1 <= size < num_samples:
            raise ValueError(
                f"{asked} of {num_samples} samples prunes {size}; a selection prunes at least one "
                f"sample and keeps at least one: ask for 1 to {num_samples - 1}"
            )
        return size

    def floors(self, labels: Tensor | None) -> Tensor | None:
        """Samples to keep of each class, int64, shape (classes,); None where there is no floor.

        Raises:
            ValueError: when a floor above one is asked for and labels are unknown.
        """
        if self.min_per_class == 0 or (labels is None and self.min_per_class == 1):
            return None
        if labels is None:
            raise ValueError(
                f"min_per_class={self.min_per_class} needs the class of every sample, which this "
                "loss does not tell; pass labels="
            )
        return torch.bincount(labels).clamp(max=self.min_per_class)


@dataclass(frozen=True, eq=False)
class Selection:
    """The result: which samples to prune, and what that is predicted to do.

    Args:
        pruned: indices to prune, int64, shape (m,), ascending.
        num_samples: size n of the dataset.
        shift: norm of the first-order parameter shift, in the units of the scored parameters.
        newton_shift: norm of one Newton step on the kept samples from the parameters at hand: the
            same with the curvature of the kept samples. Closer to the truth, still a prediction.
        bound: proved upper bound on the shift, or None. It holds when the scored layer alone is
            trained, with a convex loss and an L2 penalty equal to the damping, to convergence.
        budget: what was asked for.
        metadata: seconds, settings and counts of the run, JSON values.

    Raises:
        ValueError: for indices that are not ascending, distinct and within the dataset, or that
            leave nothing.
    """

    pruned: Tensor
    num_samples: int
    shift: float
    newton_shift: float
    bound: float | None
    budget: Budget
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        pruned, n = self.pruned, self.num_samples
        if pruned.dtype != torch.int64 or pruned.dim() != 1:
            raise ValueError(
                f"pruned must be int64 of shape (m,), got {pruned.dtype} {pruned.shape}"
            )
        if len(pruned) >= n:
            raise ValueError(f"{len(pruned)} of {n} samples pruned: nothing would be kept")
        if len(pruned) and (pruned[0] < 0 or pruned[-1] >= n or (pruned.diff() <= 0).any()):
            raise ValueError(f"pruned indices must be ascending, distinct and within 0 to {n - 1}")

    @property
    def kept(self) -> Tensor:
        """Indices that stay, int64, shape (n - m,), ascending."""
        return complement(self.pruned, self.num_samples)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to a safetensors file, atomically: the file is whole or not there."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Selection:
        """Read a file that :meth:`save` wrote.

        Raises:
            ValueError: when the file is not a valid selection.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error

    def to_bytes(self) -> bytes:
        """The content of a file."""
        header = {
            "format": FORMAT,
            "version": VERSION,
            "num_samples": self.num_samples,
            "shift": self.shift,
            "newton_shift": self.newton_shift,
            "bound": self.bound,
            "budget": asdict(self.budget),
            "metadata": self.metadata,
        }
        return save_tensors({"pruned": self.pruned.contiguous()}, {"header": json.dumps(header)})

    @classmethod
    def from_bytes(cls, data: bytes) -> Selection:
        """The reverse of :meth:`to_bytes`; nothing in the data is trusted.

        Raises:
            ValueError: when the data are not a valid selection.
        """
        header = _read_header(data)
        try:
            tensors = load_tensors(data)
            return cls(
                pruned=tensors["pruned"],
                num_samples=_number(header["num_samples"], int),
                shift=_number(header["shift"], float),
                newton_shift=_number(header["newton_shift"], float),
                bound=None if header["bound"] is None else _number(header["bound"], float),
                budget=Budget(**header["budget"]),
                metadata=dict(header["metadata"]),
            )
        except (KeyError, TypeError, SafetensorError) as error:
            raise ValueError(f"not a complete selection: {error!r}") from error


def complement(indices: Tensor, size: int) -> Tensor:
    """Those of 0 to size - 1 that are not in ``indices``, int64, ascending."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[indices] = False
    return mask.nonzero().flatten()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def _read_header(data: bytes) -> Mapping[str, Any]:
    """The JSON header inside the safetensors metadata."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
        form, version = header["format"], header["version"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError("not a selection file of prunesampler") from error
    if form != FORMAT or version != VERSION:
        raise ValueError(
            f"this is {form!r} version {version!r}; this release reads {FORMAT!r} version {VERSION}"
        )
    return header  # type: ignore[no-any-return]


def _number(value: Any, kind: type) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{value!r} is not a number")
    return kind(value)
