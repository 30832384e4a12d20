"""Whitened rows of a large layer: for each sample only the outputs that its loss pulls at.

With many classes a sample's gradient ``delta_i ⊗ a_i`` is nearly zero outside its own class and a few
rivals. An *entry* is one such output c of a sample: the number ``delta_ic``, the input ``a_i`` of the
layer, and r numbers ``z_ic`` that stand for the curvature of the output. The squared norm of a sum of
samples, with ``V_c = sum of delta_ic a_i`` and ``T_c = sum of delta_ic z_ic``, is
``sum over c of base_c |V_c|^2 - |T_c|^2``: see `prunesampler.influence.blocks`.

A sample has one input, which its entries share, or as a sequence one for each token: then it has the
entries of all its tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.compiled import FLUSH, compiled, flush, half

SIGNIFICANT, MOST_ENTRIES = 0.02, 8
"""An entry is dropped if its ``delta`` is smaller than this share of the sample's largest one, or than a
larger share with which ``MOST_ENTRIES`` of each sample are left on average."""
LOOKED_AT = 4096
"""Samples from which that share is found."""
PART = 16384
"""Samples handled at a time."""
LARGEST_HALF = 2.0**14
"""Inputs are scaled so that the largest is about this: half precision ends at 65,504."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SparseRows:
    """n rows of nnz entries in all, those of sample i from ``starts[i]`` to before ``starts[i + 1]``.

    Entries of a sample with the same output lie side by side. Memory: ``2 D`` bytes for each input and
    ``4 (r + 3)`` for each entry.

    Args:
        starts: Where the entries of each sample begin, int64, shape (n + 1,).
        places: Which of the inputs each entry has, int32, shape (nnz,).
        outputs: The layer's output of each entry, int32, shape (nnz,).
        values: ``delta`` of each entry, float32, shape (nnz,).
        projected: The numbers ``z`` of each entry, float32, shape (nnz, r).
        inputs: The layer's inputs in half precision, as bits, uint16, shape (N, D), N at least n.
        base: Weight of ``|V_c|^2``, float32, shape (C,).

    Examples:
        >>> rows = SparseRows(
        ...     starts=np.array([0, 1, 3]),
        ...     places=np.array([0, 1, 1], dtype=np.int32),
        ...     outputs=np.array([0, 0, 1], dtype=np.int32),
        ...     values=np.array([1.0, -1.0, 1.0], dtype=np.float32),
        ...     projected=np.zeros((3, 1), dtype=np.float32),
        ...     inputs=np.array([[2.0], [3.0]], dtype=np.float16).view(np.uint16),
        ...     base=np.ones(2, dtype=np.float32),
        ... )
        >>> rows.sum()[:, 0].tolist(), rows.squares().tolist()
        ([-1.0, 3.0], [4.0, 18.0])
    """

    starts: NDArray[np.int64]
    places: NDArray[np.int32]
    outputs: NDArray[np.int32]
    values: NDArray[np.float32]
    projected: NDArray[np.float32]
    inputs: NDArray[np.uint16]
    base: NDArray[np.float32]

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.starts) - 1

    def sum(self, indices: Tensor | None = None) -> Tensor:
        """``V`` and ``T`` of the chosen samples (all by default), side by side, (C, D + r), float64."""
        weights = np.ones(len(self)) if indices is None else np.zeros(len(self))
        if indices is not None:
            weights[indices.numpy()] = 1.0
        total = np.zeros((len(self.base), self.inputs.shape[1] + self.projected.shape[1]))
        _add(
            self.starts, self.places, self.outputs, self.values, self.projected, self.inputs, weights,
            np.zeros(total.shape, dtype=np.float32), total,
        )  # fmt: skip
        return torch.from_numpy(total)

    def squares(self) -> NDArray[np.float64]:
        """Squared norm of every row, shape (n,), not centred."""
        return _squares(
            self.starts, self.places, self.outputs, self.values, self.projected, self.inputs, self.base
        )  # fmt: skip

    def square(self, total: NDArray[np.float64]) -> float:
        """Squared norm of a sum of rows, as :meth:`sum` gives it; at least zero."""
        width = self.inputs.shape[1]
        own = np.square(total[:, :width]).sum(1) @ self.base.astype(np.float64)
        return max(0.0, float(own - np.square(total[:, width:]).sum()))


def halves(inputs: Tensor) -> tuple[NDArray[np.uint16], float]:
    """Inputs in half precision as bits, (n, D), and the power of two that they were divided by.

    Inputs that are in half precision are shared, not copied.

    Examples:
        >>> bits, scale = halves(torch.tensor([[1.0, 2.0**17]]))
        >>> bits.view(np.float16).tolist(), scale
        ([[0.125, 16384.0]], 8.0)
    """
    if inputs.dtype == torch.float16:
        shared: NDArray[np.uint16] = inputs.contiguous().numpy().view(np.uint16)
        return shared, 1.0
    starts = range(0, len(inputs), PART)
    largest = max((float(inputs[k : k + PART].abs().max()) for k in starts), default=0.0)
    scale = 2.0 ** math.ceil(math.log2(largest / LARGEST_HALF)) if largest else 1.0
    bits = np.zeros(tuple(inputs.shape), dtype=np.uint16)
    for start in starts:
        part = (inputs[start : start + PART] / scale).half().cpu().numpy()
        bits[start : start + len(part)] = part.view(np.uint16)
    return bits, scale


def least_share(delta: Tensor) -> float:
    """Share of its sample's largest ``delta`` that an entry must have to be kept.

    Args:
        delta: Gradients with respect to the outputs, shape (n, k); a few samples of them are looked at.

    Examples:
        >>> least_share(torch.tensor([[0.9, -0.899, -0.001]]))
        0.02
    """
    looked_at = delta[:: max(1, len(delta) // LOOKED_AT)].abs()
    largest = looked_at.max(1, keepdim=True).values.clamp(min=1e-30)
    shares = (looked_at / largest).flatten()
    most = MOST_ENTRIES * len(looked_at)
    if len(shares) <= most:
        return SIGNIFICANT
    return max(SIGNIFICANT, float(shares.kthvalue(len(shares) - most).values))


def significant(delta: Tensor, least: float) -> tuple[Tensor, Tensor]:
    """Samples and places of the entries worth keeping, both int64, in the order of the samples.

    Args:
        delta: Gradients with respect to the outputs, shape (n, k).
        least: Share of the sample's largest one that an entry must have.

    Examples:
        >>> samples, places = significant(torch.tensor([[0.9, -0.899, -0.001]]), 0.02)
        >>> places.tolist()
        [0, 1]
    """
    sizes = delta.abs()
    kept = (sizes >= least * sizes.max(1, keepdim=True).values) & (sizes > 0)
    samples, places = kept.nonzero(as_tuple=True)
    return samples, places


@partial(compiled, fastmath=True)
def _add(
    starts: NDArray[np.int64], places: NDArray[np.int32], outputs: NDArray[np.int32], values: Floats,
    projected: Floats, inputs: NDArray[np.uint16], weights: NDArray[np.float64], part: Floats,
    total: NDArray[np.float64],
) -> None:  # fmt: skip
    """Add all rows, times their weights, to ``total``, with ``part`` for what is not added yet."""
    width = inputs.shape[1]
    for i in range(len(starts) - 1):
        if weights[i] != 0.0:
            for e in range(starts[i], starts[i + 1]):
                c, a, value = outputs[e], places[e], np.float32(weights[i] * values[e])
                for d in range(width):
                    part[c, d] += value * half(inputs[a, d])
                for d in range(projected.shape[1]):
                    part[c, width + d] += value * projected[e, d]
        if i % FLUSH == FLUSH - 1 or i == len(starts) - 2:
            flush(part, total)


@partial(compiled, fastmath=True)
def _squares(
    starts: NDArray[np.int64], places: NDArray[np.int32], outputs: NDArray[np.int32], values: Floats,
    projected: Floats, inputs: NDArray[np.uint16], base: Floats,
) -> NDArray[np.float64]:  # fmt: skip
    """Squared norm of every row."""
    squares = np.zeros(len(starts) - 1)
    width, rank = inputs.shape[1], projected.shape[1]
    whole, covered = np.empty(width, np.float32), np.empty(rank, np.float32)
    for i in range(len(squares)):
        norm, last = np.float32(0), -1
        for e in range(starts[i], starts[i + 1]):
            if e > starts[i] and outputs[e] == outputs[e - 1]:
                continue
            if (
                e + 1 == starts[i + 1] or outputs[e + 1] != outputs[e]
            ):  # as always without sequences
                if places[e] != last:
                    last, norm = places[e], _square_of(inputs, places[e])
                less = (projected[e] * projected[e]).sum()
                squares[i] += values[e] * values[e] * (base[outputs[e]] * norm - less)
                continue
            whole[:], covered[:] = 0, 0
            for k in range(e, starts[i + 1]):
                if outputs[k] != outputs[e]:
                    break
                for d in range(width):
                    whole[d] += values[k] * half(inputs[places[k], d])
                covered += values[k] * projected[k]
            squares[i] += base[outputs[e]] * (whole * whole).sum() - (covered * covered).sum()
    return squares


@partial(compiled, inline="always", fastmath=True)
def _square_of(inputs: NDArray[np.uint16], place: int) -> np.float32:
    """Squared norm of one of the inputs."""
    norm = np.float32(0)
    for d in range(inputs.shape[1]):
        norm += half(inputs[place, d]) * half(inputs[place, d])
    return norm
