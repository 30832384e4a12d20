"""Factorised curvatures, which `prunesampler.influence.curvature` makes: products and inverses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.rows import CHUNK, RankOne
from prunesampler.influence.sequences import SequenceRows
from prunesampler.influence.sparse import SparseRows


class Factorised(Protocol):
    """A factorised curvature ``H`` of shape (K*D, K*D), damping included."""

    @property
    def damping(self) -> float:
        """Multiple of the identity that was added to the curvature."""

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """``H^-1`` applied to a matrix of shape (K, D), or to a stack of them, in float64."""

    def multiply(self, matrix: Tensor) -> Tensor:
        """``H`` applied to a matrix of shape (K, D), or to a stack of them, in float64."""

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne | SparseRows:
        """Rows in coordinates where the curvature is about the identity: ``L^-1 g``, ``H = L L^T``.

        Solvers work in these coordinates because all directions weigh the same. A set that shifts
        nothing does so in any coordinates; reported norms never come from whitened rows.
        """

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> Tensor | None:
        """``(g_i - mean)^T H^-power (g_i - mean)`` for every row, shape (n,), float64.

        None if no closed form is known; then the inverse is applied to every row.

        Args:
            rows: N matrices ``g_i`` of shape (K, D).
            mean: Subtracted from every row, shape (K, D), float64.
            power: 1 or 2.
        """


@dataclass(frozen=True)
class ExactFactorised:
    """Cholesky factors of the damped GGN.

    Args:
        cholesky: Lower triangular factor, shape (R, R), float64.
        light: Lower triangular factor with the smaller damping that whitened rows use.
        damping: Multiple of the identity in ``cholesky``.

    Examples:
        >>> factorised = ExactFactorised(torch.tensor([[2.0]]).double(), torch.eye(1), 1.0)
        >>> factorised.apply_inverse(torch.tensor([[8.0]]))
        tensor([[2.]], dtype=torch.float64)
    """

    cholesky: Tensor
    light: Tensor
    damping: float

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """``H^-1`` applied to matrices of shape (..., K, D), float64."""
        lower, flat = self.cholesky, matrix.double().reshape(-1, len(self.cholesky))
        # torch.cholesky_solve would take seven times as long, since it copies the matrix first.
        half = torch.linalg.solve_triangular(lower, flat.T, upper=False)
        whole: Tensor = torch.linalg.solve_triangular(lower.T, half, upper=True)
        return whole.T.reshape(matrix.shape)

    def multiply(self, matrix: Tensor) -> Tensor:
        """``H`` applied to matrices of shape (..., K, D), float64."""
        flat = matrix.double().reshape(-1, len(self.cholesky))
        return (flat @ self.cholesky @ self.cholesky.T).reshape(matrix.shape)

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> None:
        """None: there is no closed form."""

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne:
        """``L^-1 g_i``: dense rows of shape (1, R), float32, ``4 n R`` bytes.

        ``L`` is ``light``, with less damping: where damping outweighs the curvature, rows would have
        small norms, and annealing would be slow to balance them.
        """
        lower = self.light.float()
        white = torch.empty(len(rows), len(lower), device=lower.device)
        for start in range(0, len(rows), CHUNK):
            flat = rows[start : start + CHUNK].flat().float()
            solved = torch.linalg.solve_triangular(lower, flat.T, upper=False)
            white[start : start + CHUNK] = solved.T
        return RankOne.from_vectors(white)


@dataclass(frozen=True)
class KroneckerFactorised:
    """Eigenvalues (K,) and (D,) and eigenvectors of both Kronecker factors, float64.

    Examples:
        >>> one, two = torch.ones(1).double(), torch.tensor([2.0]).double()
        >>> factorised = KroneckerFactorised(two, one[:, None], two, one[:, None], 1.0)
        >>> factorised.multiply(torch.tensor([[3.0]]))  # (2 * 2 + 1) * 3
        tensor([[15.]], dtype=torch.float64)
    """

    left_values: Tensor
    left_vectors: Tensor
    right_values: Tensor
    right_vectors: Tensor
    damping: float

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """``(B ⊗ A + damping I)^-1`` applied to matrices of shape (..., K, D), float64."""
        return self._rotate(matrix, 1 / self._values())

    def multiply(self, matrix: Tensor) -> Tensor:
        """``B ⊗ A + damping I`` applied to matrices of shape (..., K, D), float64."""
        return self._rotate(matrix, self._values())

    def _values(self) -> Tensor:
        return torch.outer(self.left_values, self.right_values) + self.damping

    def _rotate(self, matrix: Tensor, scale: Tensor) -> Tensor:
        rotated = self.left_vectors.T @ matrix.double() @ self.right_vectors
        return self.left_vectors @ (rotated * scale) @ self.right_vectors.T

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> Tensor:
        """See :class:`Factorised`; in the basis of eigenvectors the curvature is diagonal."""
        assert isinstance(rows, RankOne)
        weights = self._values() ** -power
        centre = self.left_vectors.T @ mean @ self.right_vectors
        turned = (
            RankOne(c.left.double() @ self.left_vectors, c.right.double() @ self.right_vectors)
            for c in rows.chunks()
        )
        return torch.cat([chunk.squares(centre, weights) for chunk in turned])

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne:
        """Rows whitened by each factor separately, so still rank one: ``4 n (K + D)`` bytes.

        The damping is split between the factors in proportion to their mean eigenvalues.
        """
        assert isinstance(rows, RankOne)
        ratio = float((self.left_values.mean() / self.right_values.mean().clamp(min=1e-30)) ** 0.5)
        ratio = ratio or 1.0
        left = (self.left_values + self.damping**0.5 * ratio).rsqrt()
        right = (self.right_values + self.damping**0.5 / ratio).rsqrt()
        to_left, to_right = self.left_vectors * left, self.right_vectors * right
        return RankOne(
            (rows.left @ to_left.to(rows.left)).float(),
            (rows.right @ to_right.to(rows.right)).float(),
        )


@dataclass(frozen=True)
class IdentityFactorised:
    """The identity as curvature: influence is the centred gradient over n.

    Examples:
        >>> IdentityFactorised().apply_inverse(torch.tensor([[3.0]]))
        tensor([[3.]], dtype=torch.float64)
    """

    damping: float = 0.0

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()

    def multiply(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne:
        """The rows themselves, in float32."""
        assert isinstance(rows, RankOne)
        return RankOne(rows.left.float(), rows.right.float())

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> Tensor:
        """Squared distance of every row from ``mean``, shape (n,), float64."""
        del power
        assert isinstance(rows, RankOne)
        return rows.squares(mean, torch.ones_like(mean))
