"""Orders of indices, and how a state writes down a set of them."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesampler.base.checks import checked_indices

MANY_PASSES = 1000
"""From so many repetitions of the kept samples on, all are shuffled at once."""


def permutations(size: int, passes: int, generator: torch.Generator) -> Tensor:
    """So many random orders of 0 to size - 1 behind one another, int64."""
    if passes < MANY_PASSES:
        return torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])
    return torch.rand(passes, size, generator=generator).argsort(1).flatten()


def encode(kept: Tensor, size: int) -> str:
    """One bit for each of ``size`` samples, set where it is kept, in base64."""
    mask = np.zeros(size, dtype=bool)
    mask[kept.numpy()] = True
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def decode(code: Any, size: int) -> Tensor:
    """Kept samples, int64, ascending, from what `encode` wrote, or from indices as in older states.

    Raises:
        TypeError: for indices that are no whole numbers.
        ValueError: when they do not fit ``size`` samples.
    """
    if not isinstance(code, str):
        return checked_indices(code, size)
    try:
        packed = np.frombuffer(base64.b64decode(code, validate=True), dtype=np.uint8)
    except (binascii.Error, ValueError) as error:
        raise ValueError("the state's kept samples are not base64: a damaged checkpoint") from error
    if len(packed) != -(-size // 8) or np.unpackbits(packed)[size:].any():
        raise ValueError(
            f"the state's kept samples are not of {size} samples: a damaged checkpoint, or one of "
            "another dataset"
        )
    return torch.from_numpy(np.flatnonzero(np.unpackbits(packed, count=size)))


def complement(indices: Tensor, size: int) -> Tensor:
    """Those of 0 to size - 1 that are not in ``indices``, int64, ascending."""
    mask = torch.ones(size, dtype=torch.bool)
    mask[indices] = False
    return mask.nonzero().flatten()
