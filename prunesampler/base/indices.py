"""Orders and sets of indices, and how a state stores a set."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunesampler.base.checks import checked_indices

MANY_PASSES = 1000
"""From this number of passes on, all passes are shuffled at once."""


def permutations(size: int, passes: int, generator: torch.Generator) -> Tensor:
    """Random orders of 0 to size - 1, one for each pass, one after another, int64.

    Examples:
        >>> permutations(3, passes=2, generator=torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2, 2])
    """
    if passes < MANY_PASSES:
        return torch.cat([torch.randperm(size, generator=generator) for _ in range(passes)])
    return torch.rand(passes, size, generator=generator).argsort(1).flatten()


def encode(kept: Tensor, size: int) -> str:
    """One bit for each of ``size`` samples, set where it is kept, in base64.

    Examples:
        >>> encode(torch.tensor([0, 2]), 8)
        'oA=='
    """
    mask = np.zeros(size, dtype=bool)
    mask[kept.numpy()] = True
    return base64.b64encode(np.packbits(mask).tobytes()).decode()


def decode(code: Any, size: int) -> Tensor:
    """Kept samples, int64, ascending, from what `encode` wrote or, in older states, from indices.

    Raises:
        TypeError: If indices are not whole numbers.
        ValueError: If they do not fit ``size`` samples.

    Examples:
        >>> decode("oA==", 8)
        tensor([0, 2])
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
    """The numbers from 0 to size - 1 that are not in ``indices``, int64, ascending.

    Examples:
        >>> complement(torch.tensor([1]), 3)
        tensor([0, 2])
    """
    mask = torch.ones(size, dtype=torch.bool)
    mask[indices] = False
    return mask.nonzero().flatten()
