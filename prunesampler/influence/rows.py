"""Stacks of rank-one matrices, the form that gradients of a linear layer have."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1024
"""Rows handled at a time, to bound memory; it changes results only by rounding."""
DENSE_BYTES = 2**26
"""Most bytes of float64 matrices written out at a time: 1024 matrices of 8,192 numbers."""


@dataclass(frozen=True)
class RankOne:
    """A stack of n matrices ``left_i ⊗ right_i`` of shape (K, D), held as K + D numbers each.

    Args:
        left: Left factors, shape (n, K).
        right: Right factors, shape (n, D), on the same device.

    Examples:
        >>> rows = RankOne(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        >>> rows.sum()
        tensor([[1., 6.]], dtype=torch.float64)
        >>> rows.norms()
        tensor([1., 6.], dtype=torch.float64)
    """

    left: Tensor
    right: Tensor

    def __len__(self) -> int:
        """Number of matrices n."""
        return len(self.left)

    def __getitem__(self, index: Tensor | slice) -> RankOne:
        return RankOne(self.left[index], self.right[index])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one matrix."""
        return self.left.shape[1], self.right.shape[1]

    def chunks(self, size: int = CHUNK) -> Iterator[RankOne]:
        """Consecutive slices of at most ``size`` matrices."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def dense_chunks(self) -> Iterator[Tensor]:
        """The matrices written out in chunks of shape (b, K, D), float64, in bounded memory."""
        for chunk in self.chunks(matrices_at_a_time(self.shape)):
            yield chunk.flat().double().view(len(chunk), *self.shape)

    def sum(self, indices: Tensor | None = None) -> Tensor:
        """Sum of the chosen matrices (all by default), shape (K, D), accumulated in float64."""
        if indices is None:
            chosen = self.chunks()
        else:  # a chunk at a time: all at once would copy nearly everything
            at = indices.to(self.left.device)
            chosen = (self[at[k : k + CHUNK]] for k in range(0, len(at), CHUNK))
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.left.device)
        for chunk in chosen:
            total += chunk.left.double().T @ chunk.right.double()
        return total

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum of the matrices times their weights, shape (n,); shape (K, D), float64."""
        total = torch.zeros(self.shape, dtype=torch.float64, device=self.left.device)
        for start in range(0, len(self), CHUNK):
            left = self.left[start : start + CHUNK].double()
            right = self.right[start : start + CHUNK].double()
            total += (left * weights[start : start + CHUNK, None]).T @ right
        return total

    def norms(self) -> Tensor:
        """Frobenius norm of every matrix, shape (n,): the product of the factors' norms."""
        return torch.cat(
            [c.left.double().norm(dim=1) * c.right.double().norm(dim=1) for c in self.chunks()]
        )

    def inner(self, matrix: Tensor) -> Tensor:
        """Inner product of every matrix with one of shape (K, D); shape (n,), float64."""
        matrix = matrix.double()
        return torch.cat(
            [((c.left.double() @ matrix) * c.right.double()).sum(1) for c in self.chunks()]
        )

    def squares(self, mean: Tensor, weights: Tensor) -> Tensor:
        """Sum of ``weights * (matrix - mean)^2`` for every matrix, shape (n,), float64.

        The square is expanded, so that no matrix is ever written out.

        Args:
            mean: Subtracted from every matrix, shape (K, D), float64.
            weights: Weight of every entry, shape (K, D), float64.
        """
        own = [
            ((c.left.double().square() @ weights) * c.right.double().square()).sum(1)
            for c in self.chunks()
        ]
        rest = (weights * mean.square()).sum() - 2 * self.inner(weights * mean)
        return (torch.cat(own) + rest).clamp(min=0)

    def flat(self) -> Tensor:
        """Every matrix written out, shape (n, K * D), in K * D / (K + D) times the memory."""
        return (self.left[:, :, None] * self.right[:, None, :]).flatten(1)

    @classmethod
    def from_vectors(cls, vectors: Tensor) -> RankOne:
        """Wrap dense vectors, shape (n, P), as matrices of shape (1, P)."""
        return cls(vectors.new_ones(len(vectors), 1), vectors)


def matrices_at_a_time(shape: tuple[int, int]) -> int:
    """Number of matrices of this shape that may be written out at a time, 1 to ``CHUNK``.

    Examples:
        >>> matrices_at_a_time((9, 65)), matrices_at_a_time((99, 2049))
        (1024, 41)
    """
    return max(1, min(CHUNK, DENSE_BYTES // (8 * shape[0] * shape[1])))
