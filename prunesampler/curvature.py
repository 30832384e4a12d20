"""Curvature of the loss by a linear layer's parameters, and its inverse.

The curvature is the mean generalised Gauss-Newton matrix (GGN) of the measured samples,
``H = (1/n) sum_i H_i ⊗ a_i a_i^T + damping I``, where ``H_i`` is the loss's Hessian by the C outputs
and ``a_i`` the layer's input. For a linear layer under its loss, GGN and Hessian are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence import CHUNK, Factor, IdentityFactor, RankOne
from prunesampler.samples import SampleGradients

SINGLE = 1e-5
"""Damping below this share of the largest diagonal entry would drown in float32 rounding."""
DEFAULT_DAMPING = 1e-3
"""Share of the curvature's mean eigenvalue that is added where no damping is given."""
SEARCH_DAMPING = 1e-2
"""The same, at most, for the coordinates of the search."""


class Curvature(Protocol):
    """Turns measured samples into a factorised curvature."""

    def factor(self, gradients: SampleGradients, damping: float | None = None) -> Factor:
        """Factorise the curvature of these samples.

        Args:
            gradients: the measured samples.
            damping: use this instead of the curvature's own setting.
        """


@dataclass(frozen=True, kw_only=True)
class ExactCurvature:
    """The GGN itself: one matrix of size R = K * D, one Cholesky for all samples.

    K is C - 1 for cross-entropy (softmax does not see a shift of all outputs), else C; D is the
    layer's inputs plus one for the bias. Time: ``n R^2 / 2 + R^3 / 6`` multiply-adds to factorise
    and ``n R^2 / 2`` to whiten. Peak memory: ``4 n R`` bytes for the whitened rows, ``32 R^2`` for matrices.

    Args:
        damping: added to the diagonal; give the weight decay in use. Default: 1e-3 of the mean
            eigenvalue.
        max_size: refuse R above this.
    """

    damping: float | None = None
    max_size: int = 8192

    def __post_init__(self) -> None:
        _check_damping(self.damping)

    def check_size(self, gradients: SampleGradients, num_samples: int) -> int:
        """The size R of the matrix, from any samples' measurements.

        Raises:
            ValueError: when it is above ``max_size``.
        """
        rows, columns = gradients.hessian.basis().shape[1], gradients.inputs.shape[1]
        size = rows * columns
        if size > self.max_size:
            raise ValueError(
                f"exact curvature of this layer has size R = {rows} * {columns} = {size}, above "
                f"max_size={self.max_size}: {8 * size**2 / 2**30:.1f} GiB a matrix and "
                f"{4 * num_samples * size / 2**30:.1f} GiB of whitened rows. Use "
                "KroneckerCurvature() (an approximation), a smaller layer, or a larger max_size"
            )
        return size

    def factor(self, gradients: SampleGradients, damping: float | None = None) -> ExactFactor:
        """Factorise the mean GGN.

        Raises:
            ValueError: when R is above ``max_size``, or the curvature is not positive definite.
        """
        size = self.check_size(gradients, len(gradients))
        matrix = gauss_newton(gradients)
        largest = float(matrix.diagonal().max())
        chosen = _first(damping, self.damping, DEFAULT_DAMPING * float(matrix.trace()) / size)
        if chosen < SINGLE * largest:
            del matrix
            matrix = gauss_newton(gradients, torch.float64)
        light = max(SINGLE * largest, min(chosen, SEARCH_DAMPING * float(matrix.trace()) / size))
        matrix.diagonal().add_(light)
        search, _ = torch.linalg.cholesky_ex(matrix)
        matrix.diagonal().add_(chosen - light)
        cholesky, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise ValueError(
                f"the curvature is not positive definite with damping={chosen:.3g}, beside a largest "
                f"diagonal entry of {largest:.3g}: some inputs of the layer are zero or depend on "
                "others, or the loss is not convex in its output; give a larger damping, or None "
                "for the default"
            )
        return ExactFactor(cholesky, search, chosen)


def gauss_newton(gradients: SampleGradients, dtype: torch.dtype | None = None) -> Tensor:
    """Mean GGN without damping, shape (R, R), float64, index k * D + d.

    Products over ``CHUNK`` samples are added in float64. Only the blocks on and above the diagonal
    are computed.

    Args:
        gradients: the measured samples.
        dtype: precision of the products; default that of the gradients.
    """
    basis = gradients.hessian.basis()
    outputs, inputs = basis.shape[1], gradients.inputs.shape[1]
    total = torch.zeros(
        outputs, inputs, outputs, inputs, dtype=torch.float64, device=gradients.inputs.device
    )
    for chunk in gradients.chunks():
        a, weights = chunk.inputs.to(dtype), chunk.hessian.dense(basis).to(dtype)
        for k in range(outputs):
            weighted = (weights[:, k, k:, None] * a[:, None, :]).flatten(1)
            total[k, :, k:, :] += (a.T @ weighted).view(inputs, outputs - k, inputs)
    for k in range(outputs):
        for other in range(k + 1, outputs):
            total[other, :, k, :] = total[k, :, other, :].T
    return total.div_(len(gradients)).view(outputs * inputs, outputs * inputs)


@dataclass(frozen=True)
class ExactFactor:
    """Cholesky factor of the damped GGN.

    Args:
        cholesky: lower triangular, shape (R, R), float64.
        search: the same of the curvature with the damping of the search.
        damping: what was added to the diagonal.
    """

    cholesky: Tensor
    search: Tensor
    damping: float

    def solve(self, matrix: Tensor) -> Tensor:
        """``H^-1`` applied to matrices of shape (..., K, D), float64."""
        flat = matrix.double().reshape(-1, len(self.cholesky))
        return torch.cholesky_solve(flat.T, self.cholesky).T.reshape(matrix.shape)

    def multiply(self, matrix: Tensor) -> Tensor:
        """``H`` applied to matrices of shape (..., K, D), float64."""
        flat = matrix.double().reshape(-1, len(self.cholesky))
        return (flat @ self.cholesky @ self.cholesky.T).reshape(matrix.shape)

    def whiten(self, rows: RankOne) -> RankOne:
        """``L^-1 g_i``: dense rows of shape (1, R), float32, ``4 n R`` bytes.

        ``L`` is of the curvature with less damping: where damping outweighs the curvature, rows
        would be short and a search slow to balance them.
        """
        lower = self.search.float()
        white = torch.empty(len(rows), len(lower), device=lower.device)
        for start in range(0, len(rows), CHUNK):
            flat = rows[start : start + CHUNK].flat().float()
            solved = torch.linalg.solve_triangular(lower, flat.T, upper=False)
            white[start : start + CHUNK] = solved.T
        return RankOne.from_vectors(white)


@dataclass(frozen=True, kw_only=True)
class KroneckerCurvature:
    """Kronecker approximation (KFAC): mean output Hessian ⊗ mean outer product of inputs.

    Cheap, for layers of any size, and **not exact even for one linear layer**, unless inputs and
    output Hessians are independent. Every number reported with it inherits the error.

    Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
    Curvature", ICML 2015.

    Args:
        damping: added to the diagonal; give the weight decay in use. Default: 1e-3 of the mean
            eigenvalue.
    """

    damping: float | None = None

    def __post_init__(self) -> None:
        _check_damping(self.damping)

    def factor(self, gradients: SampleGradients, damping: float | None = None) -> KroneckerFactor:
        """Factorise both small matrices.

        Raises:
            ValueError: when the damping is zero, given so or since the curvature is.
        """
        basis = gradients.hessian.basis()
        outer = torch.zeros(len(basis), len(basis), dtype=torch.float64)
        for chunk in gradients.chunks():
            outer += chunk.hessian.total()
        outer = basis.T @ outer @ basis
        inner = RankOne(gradients.inputs, gradients.inputs).sum()
        left = torch.linalg.eigh(outer / len(gradients))
        right = torch.linalg.eigh(inner / len(gradients))
        mean = float(left[0].mean() * right[0].mean())
        chosen = _first(damping, self.damping, DEFAULT_DAMPING * mean)
        if chosen <= 0:
            raise ValueError(
                f"the curvature needs a positive damping, got {chosen:.3g}; give damping="
            )
        return KroneckerFactor(
            left[0].clamp(min=0), left[1], right[0].clamp(min=0), right[1], chosen
        )


@dataclass(frozen=True)
class KroneckerFactor:
    """Eigenvalues (K,) and (D,) and eigenvectors of both Kronecker factors, float64."""

    left_values: Tensor
    left_vectors: Tensor
    right_values: Tensor
    right_vectors: Tensor
    damping: float

    def solve(self, matrix: Tensor) -> Tensor:
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

    def whiten(self, rows: RankOne) -> RankOne:
        """Both factors whitened apart, so that rows stay rank one: ``4 n (K + D)`` bytes.

        The damping is split between the factors in proportion to their mean eigenvalues.
        """
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
class IdentityCurvature:
    """No curvature: influence is the centred gradient over n. A baseline, and for tests."""

    def factor(self, gradients: SampleGradients, damping: float | None = None) -> IdentityFactor:
        """The identity, whatever the samples."""
        del gradients, damping
        return IdentityFactor()


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)


def _check_damping(damping: float | None) -> None:
    if damping is not None and not damping >= 0:
        raise ValueError(
            f"damping must be zero or more, got {damping}; give the weight decay in use"
        )
