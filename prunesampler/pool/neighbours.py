"""How near neighbours usually are in some features, and which samples are exactly the same."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

LOOKED_FROM, NEIGHBOUR = 1024, 64
"""Samples whose neighbours are looked for, and which of them at most, by rank, says how far neighbours usually
are: so groups of some copies do not make copies look usual, and larger groups count as a kind of their own."""
NEARER, CHANCE = 0.1, 1e-4
"""How much nearer a copy is than that at least, and the largest chance that a sample has a neighbour so near."""
RESOLVED = 1e-5
"""Least distance from 1 that a cosine in single precision can be told by."""
TILE = 16384
"""Samples among which neighbours of some are looked for at a time."""


def directions(features: Tensor) -> Tensor:
    """Features centred and of norm one, float32, shape (n, D); zero where a sample is the mean itself.

    Centring matters: after a ReLU all features are positive, and all angles between them small.

    Args:
        features: Inputs of the layer, shape (n, D).

    Raises:
        ValueError: If all samples have the same features.

    Examples:
        >>> directions(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    held = features.float()
    lengths = held.norm(dim=1, keepdim=True)
    mean = held.mean(0)
    held = held - mean
    norms = held.norm(dim=1, keepdim=True)
    apart = norms > 1e-6 * (lengths + mean.norm())  # or it is rounding
    if not apart.any():
        raise ValueError(
            f"all {len(features)} samples have the same features, so nothing can be told of copies"
        )
    return torch.where(apart, held / norms.clamp(min=1e-30), 0.0)


def unusual(features: Tensor) -> float:
    """A cosine that is far above what neighbours usually have in these features.

    Its distance from 1 is at most a tenth of that to the k-th nearest neighbour of half of the samples, k up to 64,
    and so small that one sample in ten thousand has a neighbour as near by chance: in d dimensions, of points
    that lie evenly, distances to the power d are a Poisson process, so half of the k-th nearest are
    ``2^(1/d)`` times as far as the one of rank k / 2, by which d is found. Exact repeats count once.

    Source: Levina and Bickel, "Maximum likelihood estimation of intrinsic dimension", NeurIPS 2004, section 2,
    for the process.

    Raises:
        ValueError: If all features are the same, samples are too few, or so near each other that single
            precision cannot tell.

    Examples:
        >>> 0.9 < unusual(torch.randn(200, 64)) < 0.96
        True
    """
    distinct = features[repeats(features)[1]]
    rank = min(NEIGHBOUR, len(distinct) // 8) // 2 * 2
    if rank < 4:
        raise ValueError(
            f"{len(distinct)} distinct samples are too few to tell near copies from neighbours; give similar="
        )
    nearest = _neighbours(directions(distinct), rank)
    near, farther = (nearest[:, k - 1].median().clamp(min=RESOLVED) for k in (rank // 2, rank))
    # Distances are square roots of what cosines lack of 1.
    dimension = 2 * math.log(2) / max(math.log(float(farther / near)), 1e-9)
    nearer: float = min(NEARER, (CHANCE / rank) ** (2 / min(dimension, features.shape[1])))
    far = nearer * float(farther)
    if far < RESOLVED:
        raise ValueError(
            f"neighbours are usually as near as a cosine of {1 - float(farther):.6f}: too near, or in too few "
            "dimensions, to tell copies from them; give similar=, or look for a few samples that are far larger than "
            "all others"
        )
    return max(0.5, 1 - far)


def _neighbours(x: Tensor, rank: int) -> Tensor:
    """What the cosines to the nearest neighbours lack of 1, of some samples, ascending, shape (k, rank)."""
    some = torch.arange(0, len(x), -(-len(x) // LOOKED_FROM))
    best = torch.full((len(some), rank), -1.0)
    for start in range(0, len(x), TILE):
        cosines = x[some] @ x[start : start + TILE].T
        own = some - start
        here = (own >= 0) & (own < cosines.shape[1])
        cosines[here.nonzero()[:, 0], own[here]] = -1.0
        best = torch.cat([best, cosines], 1).topk(rank, dim=1).values
    return (1 - best).clamp(min=0)


def repeats(features: Tensor) -> tuple[Tensor, Tensor]:
    """Samples whose features are exactly the same.

    Returns:
        Number of the group of repeats that each is in, or -1, int64, shape (n,), and the first sample of each
        kind, int64, ascending.

    Examples:
        >>> repeats(torch.tensor([[1.0], [2.0], [1.0]]))
        (tensor([ 0, -1,  0]), tensor([0, 1]))
    """
    rows = np.ascontiguousarray((features + 0.0).numpy())  # minus zero is zero
    kinds = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1])))[:, 0]
    _, first, places = np.unique(kinds, return_index=True, return_inverse=True)
    return numbered(torch.from_numpy(first[places])), torch.from_numpy(np.sort(first))


def joined(groups: Tensor, more: Tensor) -> Tensor:
    """Groups, and further ones of samples that are in none of them; by number, shape (n,).

    Examples:
        >>> joined(torch.tensor([0, -1, -1, 0]), torch.tensor([-1, 0, 0, -1])).tolist()
        [0, 1, 1, 0]
    """
    whole = torch.where((groups < 0) & (more >= 0), more + int(groups.max()) + 1, groups)
    places = torch.arange(len(whole))
    first = torch.full((int(whole.max()) + 2,), len(whole)).scatter_reduce(
        0, whole + 1, places, "amin"
    )
    return numbered(torch.where(whole < 0, places, first[whole + 1]))


def large(groups: Tensor) -> Tensor:
    """Which samples are in groups of more than 64, boolean, shape (n,).

    So many, as near to one another, can be a kind of its own, as a class that is tighter than others.
    """
    counts = torch.bincount(groups + 1)
    counts[0] = 0
    return counts[groups + 1] > NEIGHBOUR


def numbered(roots: Tensor) -> Tensor:
    """Groups of two or more by number, in the order of their first samples, int64, shape (n,); alone it is -1.

    Args:
        roots: The first sample of the group of each, int64, shape (n,).

    Examples:
        >>> numbered(torch.tensor([0, 1, 0])).tolist()
        [0, -1, 0]
    """
    _, places, counts = roots.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    alone = counts[places] == 1
    found, numbers = torch.where(alone, -1, roots).unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return torch.as_tensor(numbers - int(found[0] < 0))
