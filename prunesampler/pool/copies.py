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
from prunesampler.pool.neighbours import directions, numbered

LEADING = 48
"""Principal components that rule out pairs."""
BLOCK, PAIRS = 512, 2**16
"""Samples that are compared with so many others at a time, so that the distances stay in the cache of a core; and
pairs that are compared in full."""
DENSE = BLOCK**2 // 64
"""Pairs of two blocks above which one product of all their features is quicker than those of the pairs alone."""
LOOKED_AT = 8192
"""Samples from which the components are found."""
ROUNDS = 3
"""Of the iteration that finds the components."""
ROUNDING = 1e-6
"""Of a cosine."""
MOST = 1_000_000
"""Samples whose pairs are compared; on two cores half a minute for 200,000, and as their square."""


def check_similar(similar: float) -> None:
    """Check the least cosine of near copies.

    Raises:
        ValueError: If it is no number in (0, 1].
    """
    if not isinstance(similar, (int, float)) or not 0 < similar <= 1:
        raise ValueError(f"similar={similar!r} must lie in (0, 1]: it is a cosine")


def copies(features: Tensor, similar: float) -> Tensor:
    """Number of the group of near copies that each sample is in, int64, shape (n,); alone it is -1.

    Two samples are near copies if the cosine of their centred features is at least ``similar``, and of one
    group if a chain of near copies joins them. Time: ``n^2 48`` multiply-adds.

    Args:
        features: Inputs of the layer, shape (n, D).
        similar: Least cosine, in (0, 1].

    Raises:
        ValueError: If all features are the same, there are more than a million samples, or ``similar`` is
            out of range.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [-1.0, -1.0]])
        >>> copies(features, similar=0.99).tolist()
        [0, -1, 0, -1]
    """
    check_similar(similar)
    if len(features) > MOST:
        raise ValueError(
            f"pairs of {len(features)} samples are too many to compare, more than {MOST:,}; look for copies in "
            "parts, for example class by class"
        )
    x = directions(features)
    parents = np.arange(len(x))
    # Rounding must rule out no pair: neither that of the products nor that of the norms.
    farthest, least = 2 - 2 * similar + 1e-4, similar - 5e-5
    one_side, other_side = _sides(_leading(x))
    for start in range(0, len(x), BLOCK):
        block = one_side[start : start + BLOCK]
        for low in range(0, start + 1, BLOCK):
            distances = block @ other_side[low : low + BLOCK].T
            if float(distances.amin()) > farthest:
                continue
            one, other = (distances <= farthest).nonzero(as_tuple=True)
            # Where the leading components rule out little, all of the features at once.
            if len(one) > DENSE:
                cosines = x[start : start + BLOCK] @ x[low : low + BLOCK].T
                one, other = (cosines >= least).nonzero(as_tuple=True)
            one, other = one + start, other + low
            _join(x, one[one > other], other[one > other], similar, parents)
    roots = np.array([_root(parents, i) for i in range(len(parents))], dtype=np.int64)
    return numbered(torch.from_numpy(roots))


def _sides(leading: Tensor) -> tuple[Tensor, Tensor]:
    """Rows whose inner products are the squared distances of these, so that they take one product."""
    squares = leading.square().sum(1, keepdim=True)
    ones = torch.ones_like(squares)
    return torch.cat([-2 * leading, squares, ones], 1), torch.cat([leading, ones, squares], 1)


def _leading(x: Tensor) -> Tensor:
    """About the leading principal components of the samples, shape (n, LEADING), or all if they are few."""
    if x.shape[1] <= LEADING:
        return x
    some = x[:: -(-len(x) // LOOKED_AT)]
    # Of few samples and many features an eigensolver may not converge; a subspace iteration always ends, and any
    # orthonormal columns will do, better ones only rule out more.
    draw = torch.Generator().manual_seed(0)
    columns = some.T @ torch.randn(len(some), LEADING, generator=draw, dtype=some.dtype)
    for _ in range(ROUNDS):
        columns = some.T @ (some @ torch.linalg.qr(columns).Q)
    found: Tensor = x @ torch.linalg.qr(columns).Q
    return found


def _join(
    x: Tensor, one: Tensor, other: Tensor, similar: float, parents: NDArray[np.int64]
) -> None:
    """Compare these pairs in full, unless a chain joins them already, and join those that are near copies."""
    for start in range(0, len(one), PAIRS):
        i, j = one[start : start + PAIRS], other[start : start + PAIRS]
        apart = torch.from_numpy(_apart(parents, i.numpy(), j.numpy()))
        i, j = i[apart], j[apart]
        close = (x[i] * x[j]).sum(1) >= similar - ROUNDING
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


def originals(features: Tensor, groups: Tensor, doubt: Tensor, similar: float) -> Tensor:
    """The sample of which each is a near copy, int64, shape (n,); of those to keep it is the sample itself.

    In each group the sample that is doubted least is kept, and all that are near copies of it go. Where a chain
    of near copies goes on, the least doubted of what is left is kept too, and so on.

    Args:
        features: Inputs of the layer, shape (n, D).
        groups: Number of each sample's group, or -1, shape (n,).
        doubt: How little each sample's label is believed, shape (n,).
        similar: Least cosine of near copies.

    Examples:
        >>> features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.01], [-1.0, -1.0]])
        >>> originals(features, copies(features, 0.99), torch.tensor([0.9, 0.0, 0.1, 0.0]), 0.99).tolist()
        [2, 1, 2, 3]
    """
    x, found = directions(features), torch.arange(len(groups))
    left = doubt.argsort(stable=True)
    left = left[groups[left] >= 0]
    while len(left):
        numbers, first = np.unique(groups[left].numpy(), return_index=True)
        kept = left[torch.from_numpy(first)][
            torch.from_numpy(np.searchsorted(numbers, groups[left].numpy()))
        ]
        # A sample that is the mean itself has no direction, but can be repeated.
        same = (features[left] == features[kept]).all(1)
        near = ((x[left] * x[kept]).sum(1) >= similar - ROUNDING) | same
        found[left[near]] = kept[near]
        left = left[~near]
    return found
