"""Near copies: groups of samples whose features point the same way.

All pairs are compared, exactly. The features are centred and scaled to norm one; then the distance of two
samples is at least that of their leading principal components, which rules out nearly all pairs at an
eighth of the cost or less, and only what is left is compared in full.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.compiled import compiled

LEADING = 48
"""Principal components that rule out pairs."""
BLOCK, TILE, PAIRS = 2048, 16384, 2**16
"""Samples that are compared with so many others at a time, and pairs that are compared in full."""
LOOKED_AT = 8192
"""Samples from which the components are found."""
NEIGHBOURS, NEARER = 1024, 0.1
"""Samples whose nearest neighbours are looked for, and how much nearer a copy is than they are."""
MOST = 200_000
"""Samples whose pairs are compared; of 200,000 that takes minutes."""


def directions(features: Tensor) -> Tensor:
    """Features centred and of norm one, float32, shape (n, D); zero where a sample is the mean itself.

    Centring matters: after a ReLU all features are positive, and all angles between them small.

    Args:
        features: Inputs of the layer, shape (n, D).

    Raises:
        ValueError: If all samples have the same features.

    Example:
        >>> directions(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).tolist()
        [[-1.0, 0.0], [1.0, 0.0]]
    """
    held = features.float()
    held = held - held.mean(0)
    norms = held.norm(dim=1, keepdim=True)
    largest = float(norms.max())
    if not largest > 1e-6 * float(features.float().norm(dim=1).max()):
        raise ValueError(
            f"all {len(features)} samples have the same features, so nothing can be told of copies"
        )
    return torch.where(norms > 1e-6 * largest, held / norms.clamp(min=1e-30), 0.0)


def copies(features: Tensor, similar: float) -> Tensor:
    """Number of the group of near copies that each sample is in, int64, shape (n,); alone it is -1.

    Two samples are near copies if the cosine of their centred features is at least ``similar``, and of one
    group if a chain of near copies joins them. Time: ``n^2 48`` multiply-adds.

    Args:
        features: Inputs of the layer, shape (n, D).
        similar: Least cosine, in (0, 1].

    Raises:
        ValueError: If all features are the same, there are more than 200,000 samples, or ``similar`` is
            out of range.

    Example:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [-1.0, -1.0]])
        >>> copies(features, similar=0.99).tolist()
        [0, -1, 0, -1]
    """
    if not 0 < similar <= 1:
        raise ValueError(f"similar={similar} must lie in (0, 1]: it is a cosine")
    if len(features) > MOST:
        raise ValueError(
            f"pairs of {len(features)} samples are too many to compare, more than {MOST:,}; look for copies in "
            "parts, for example class by class"
        )
    x = directions(features)
    leading = _leading(x)
    parents = np.arange(len(x))
    # Rounding must rule out no pair: neither that of the products nor that of the norms.
    farthest = 2 - 2 * similar + 1e-4
    squares = leading.square().sum(1)
    for start in range(0, len(x), BLOCK):
        block = slice(start, start + BLOCK)
        for low in range(0, min(start + BLOCK, len(x)), TILE):
            tile = slice(low, min(low + TILE, start + BLOCK))
            near = squares[block, None] + squares[tile] - 2 * leading[block] @ leading[tile].T
            one, other = (near <= farthest).nonzero(as_tuple=True)
            one, other = one + start, other + low
            _join(x, one[one > other], other[one > other], similar, parents)
    return _numbered(parents)


def _leading(x: Tensor) -> Tensor:
    """The leading principal components of the samples, shape (n, LEADING), or all if they are few."""
    if x.shape[1] <= LEADING:
        return x
    some = x[:: -(-len(x) // LOOKED_AT)]
    _, vectors = torch.linalg.eigh(some.T @ some)
    found: Tensor = x @ vectors[:, -LEADING:]
    return found


def _join(
    x: Tensor, one: Tensor, other: Tensor, similar: float, parents: NDArray[np.int64]
) -> None:
    """Compare these pairs in full, unless a chain joins them already, and join those that are near copies."""
    for start in range(0, len(one), PAIRS):
        i, j = one[start : start + PAIRS], other[start : start + PAIRS]
        apart = torch.from_numpy(_apart(parents, i.numpy(), j.numpy()))
        i, j = i[apart], j[apart]
        close = (x[i] * x[j]).sum(1) >= similar - 1e-6
        _unite(parents, i[close].numpy(), j[close].numpy())


@compiled
def _root(parents: NDArray[np.int64], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@compiled
def _apart(
    parents: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which pairs are of different groups."""
    found = np.empty(len(one), dtype=np.bool_)
    for k in range(len(one)):
        found[k] = _root(parents, one[k]) != _root(parents, other[k])
    return found


@compiled
def _unite(parents: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
    """The first sample of a group is its root."""
    for k in range(len(one)):
        a, b = _root(parents, one[k]), _root(parents, other[k])
        if a < b:
            parents[b] = a
        elif b < a:
            parents[a] = b


def _numbered(parents: NDArray[np.int64]) -> Tensor:
    """Groups of two or more by number, in the order of their first samples."""
    roots = np.array([_root(parents, i) for i in range(len(parents))], dtype=np.int64)
    _, places, counts = np.unique(roots, return_inverse=True, return_counts=True)
    alone = counts[places] == 1
    _, numbers = np.unique(np.where(alone, -1, roots), return_inverse=True)
    first = 1 if alone.any() else 0
    return torch.from_numpy(np.where(alone, -1, numbers - first).astype(np.int64))


def originals(groups: Tensor, doubt: Tensor) -> Tensor:
    """The sample to keep of each group, int64, shape (number of groups,): the one that is doubted least.

    Args:
        groups: Number of each sample's group, or -1, shape (n,).
        doubt: How little each sample's label is believed, shape (n,).

    Example:
        >>> originals(torch.tensor([0, -1, 0]), torch.tensor([0.9, 0.0, 0.1])).tolist()
        [2]
    """
    order = doubt.argsort(stable=True)
    _, first = np.unique(groups[order].numpy(), return_index=True)
    found = order[torch.from_numpy(first)]
    return found[groups[found] >= 0]


def unusual(features: Tensor) -> float:
    """A cosine that is far above what nearest neighbours usually have in these features.

    Its distance from 1 is a tenth of that which nine tenths of the samples have to their nearest neighbour
    at most: so it fits features that spread, and those of a trained network that lie close within a class.

    Example:
        >>> 0.9 < unusual(torch.randn(200, 64)) < 0.96
        True
    """
    x = directions(features)
    some = torch.arange(0, len(x), -(-len(x) // NEIGHBOURS))
    nearest = torch.full((len(some),), -1.0)
    for start in range(0, len(x), TILE):
        cosines = x[some] @ x[start : start + TILE].T
        own = some - start
        here = (own >= 0) & (own < cosines.shape[1])
        cosines[here.nonzero()[:, 0], own[here]] = -1.0
        nearest = torch.maximum(nearest, cosines.amax(1))
    distances = (1 - nearest).clamp(min=0)
    return max(0.5, 1 - NEARER * float(distances.quantile(0.9)))
