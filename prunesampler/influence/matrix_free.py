"""The exact curvature by its products alone: nothing of the size of the curvature is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.conjugate import conjugate_gradients
from prunesampler.influence.rows import RankOne
from prunesampler.influence.sequences import Measured, SequenceRows
from prunesampler.influence.sparse import SparseRows


class Approximation(Protocol):
    """A curvature near the exact one, whose inverse is at hand."""

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """About ``H^-1`` applied to matrices of shape (..., K, D), in float64."""

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne | SparseRows:
        """Rows in coordinates where the curvature is about the identity."""

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> Tensor | None:
        """About ``(g_i - mean)^T H^-power (g_i - mean)`` for every row, shape (n,), float64."""


@dataclass(frozen=True)
class MatrixFree:
    """The damped GGN of the measured samples, and its inverse by conjugate gradients.

    Inverses are exact to a residual of a thousandth; rows are whitened, and squares of single samples
    are estimated, with the approximation that also preconditions.

    Args:
        measurements: Measurements of the samples.
        near: An approximation of their curvature.
        damping: Multiple of the identity that is added.
        residuals: The residual of every inverse so far, as a share of what it was applied to.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> from prunesampler.influence.factorised import IdentityFactorised
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, targets)
        >>> measured = Measurements(delta, inputs, hessian, losses)
        >>> factorised = MatrixFree(measured, IdentityFactorised(), damping=1.0)  # H = 5 + 1
        >>> factorised.apply_inverse(torch.tensor([[12.0]]))
        tensor([[2.]], dtype=torch.float64)
    """

    measurements: Measured
    near: Approximation
    damping: float
    residuals: list[float] = field(default_factory=list, compare=False)

    iterative = True

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """``H^-1`` applied to matrices of shape (..., K, D), float64.

        If the steps run out, the answer is too small; the last of ``residuals`` tells.
        """
        stack = matrix.double().reshape(-1, *self.measurements.shape)
        found = [conjugate_gradients(self.multiply, one, self.near.apply_inverse) for one in stack]
        self.residuals.extend(one.residual for one in found)
        return torch.stack([one.solution for one in found]).reshape(matrix.shape)

    def multiply(self, matrix: Tensor) -> Tensor:
        """``H`` applied to matrices of shape (..., K, D), float64."""
        return self.measurements.curvature_product(matrix) + self.damping * matrix.double()

    def whiten(self, rows: RankOne | SequenceRows) -> RankOne | SparseRows:
        """Rows whitened by the approximation."""
        return self.near.whiten(rows)

    def squares(self, rows: RankOne | SequenceRows, mean: Tensor, power: int) -> Tensor | None:
        """Squares by the approximation: one inverse for each sample would take too long."""
        return self.near.squares(rows, mean, power)
