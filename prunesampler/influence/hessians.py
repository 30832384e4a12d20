"""Second derivatives of per-sample losses with respect to the outputs of a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class OutputHessian(Protocol):
    """Second derivative of each sample's loss with respect to the layer's C outputs."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors held, with first dimension n, by the names of the constructor's arguments."""

    def dense(self, basis: Tensor) -> Tensor:
        """``basis^T H_i basis`` for every sample, shape (n, K, K), for a basis of shape (C, K)."""

    def apply(self, vectors: Tensor) -> Tensor:
        """``H_i v_i`` for every sample, for vectors of shape (..., n, C), in their dtype and shape."""

    def diagonal(self) -> Tensor:
        """The diagonal of every ``H_i``, shape (n, C), in the dtype of the tensors held."""

    def total(self) -> Tensor:
        """Sum of all ``H_i``, shape (C, C), float64, in no more memory than the tensors held."""

    def basis(self) -> Tensor:
        """Orthonormal columns that span the directions that change the loss, (C, K), float64."""

    def size(self) -> tuple[int, int]:
        """Number C of outputs, and number K of directions that change the loss."""

    def expand(self, matrix: Tensor) -> Tensor:
        """``basis @ matrix`` for matrices of shape (..., K, D), float64: from the basis to outputs."""

    def reduce(self, matrix: Tensor) -> Tensor:
        """``basis^T @ matrix`` for matrices of shape (..., C, D), float64: from outputs to the basis."""


@dataclass(frozen=True)
class SoftmaxHessian:
    """Hessian of the cross-entropy: ``w_i (diag p_i - p_i p_i^T)``.

    Softmax is invariant to a shift of all outputs, so along the all-ones direction curvature and
    gradient are zero. The basis leaves it out: C - 1 Helmert columns.

    Args:
        probabilities: Softmax of the outputs, shape (n, C).
        mass: Total target weight of each sample, shape (n,); 1 without class weights.

    Examples:
        >>> hessian = SoftmaxHessian(torch.tensor([[0.5, 0.5]]), torch.ones(1))
        >>> hessian.total()
        tensor([[ 0.2500, -0.2500],
                [-0.2500,  0.2500]], dtype=torch.float64)
    """

    probabilities: Tensor
    mass: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Both arguments by name."""
        return {"probabilities": self.probabilities, "mass": self.mass}

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        p, q = self.probabilities, basis.to(self.probabilities)
        seen = p @ q
        spread = torch.einsum("ck,nc,cl->nkl", q, p, q) - seen[:, :, None] * seen[:, None, :]
        return self.mass[:, None, None] * spread

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (..., n, C); see :class:`OutputHessian`."""
        p = self.probabilities.to(vectors)
        spread = p * (vectors - (p * vectors).sum(-1, keepdim=True))
        return self.mass.to(vectors)[:, None] * spread

    def diagonal(self) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        return self.mass[:, None] * self.probabilities * (1 - self.probabilities)

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        p = self.probabilities.double()
        weighted = self.mass.double()[:, None] * p
        return torch.diag(weighted.sum(0)) - weighted.T @ p

    def basis(self) -> Tensor:
        """Helmert columns, shape (C, C - 1): orthonormal, and orthogonal to the all-ones vector."""
        return helmert(self.probabilities.shape[1])

    def size(self) -> tuple[int, int]:
        """C and C - 1."""
        return self.probabilities.shape[1], self.probabilities.shape[1] - 1

    def expand(self, matrix: Tensor) -> Tensor:
        """See :class:`OutputHessian`; by running sums, without the basis."""
        return from_helmert(matrix)

    def reduce(self, matrix: Tensor) -> Tensor:
        """See :class:`OutputHessian`; by running sums, without the basis."""
        return to_helmert(matrix)


@dataclass(frozen=True)
class _FullHessian:
    """A Hessian that may have curvature in every direction, so its basis is the identity."""

    values: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The one argument by name."""
        return {"values": self.values}

    def basis(self) -> Tensor:
        """The identity, shape (C, C)."""
        return torch.eye(self.values.shape[1], dtype=torch.float64)

    def size(self) -> tuple[int, int]:
        """C twice."""
        return self.values.shape[1], self.values.shape[1]

    def expand(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()

    def reduce(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()


@dataclass(frozen=True)
class DiagonalHessian(_FullHessian):
    """``diag(values_i)``, for losses that are a sum over the outputs.

    Args:
        values: The diagonals, shape (n, C).

    Examples:
        >>> DiagonalHessian(torch.tensor([[1.0, 2.0]])).apply(torch.tensor([[3.0, 4.0]]))
        tensor([[3., 8.]])
    """

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        q = basis.to(self.values)
        return torch.einsum("ck,nc,cl->nkl", q, self.values, q)

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (..., n, C); see :class:`OutputHessian`."""
        return self.values.to(vectors) * vectors

    def diagonal(self) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        return self.values

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        return torch.diag(self.values.double().sum(0))


@dataclass(frozen=True)
class DenseHessian(_FullHessian):
    """Any symmetric matrices, as automatic differentiation gives them.

    Args:
        values: The matrices, shape (n, C, C).

    Examples:
        >>> hessian = DenseHessian(torch.tensor([[[1.0, 1.0], [1.0, 2.0]]]))
        >>> hessian.apply(torch.tensor([[3.0, 4.0]]))
        tensor([[ 7., 11.]])
    """

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        q = basis.to(self.values)
        return torch.einsum("ck,ncd,dl->nkl", q, self.values, q)

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (..., n, C); see :class:`OutputHessian`."""
        return torch.einsum("ncd,...nd->...nc", self.values.to(vectors), vectors)

    def diagonal(self) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        return self.values.diagonal(dim1=1, dim2=2)

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        return self.values.double().sum(0)


def helmert(size: int) -> Tensor:
    """Orthonormal basis of the vectors of ``size`` numbers that sum to zero, float64.

    Returns:
        Shape (size, size - 1); column k is constant on the first k + 1 rows.

    Examples:
        >>> helmert(2).flatten()
        tensor([ 0.7071, -0.7071], dtype=torch.float64)
    """
    basis = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        scale = (k * (k + 1)) ** -0.5
        basis[:k, k - 1] = scale
        basis[k, k - 1] = -k * scale
    return basis


def to_helmert(matrix: Tensor) -> Tensor:
    """``helmert(C)^T @ matrix`` in time proportional to the matrix, float64.

    Args:
        matrix: Shape (..., C, D).

    Returns:
        Shape (..., C - 1, D).

    Examples:
        >>> to_helmert(torch.tensor([[1.0], [3.0]]))
        tensor([[-1.4142]], dtype=torch.float64)
    """
    matrix = matrix.double()
    k = torch.arange(1, matrix.shape[-2], dtype=torch.float64, device=matrix.device)[:, None]
    before = matrix[..., :-1, :].cumsum(-2)
    return (before - k * matrix[..., 1:, :]) / (k * (k + 1)).sqrt()


def from_helmert(matrix: Tensor) -> Tensor:
    """``helmert(C) @ matrix`` in time proportional to the matrix, float64.

    Args:
        matrix: Shape (..., C - 1, D).

    Returns:
        Shape (..., C, D); the columns sum to zero.

    Examples:
        >>> from_helmert(torch.tensor([[-1.4142]]))
        tensor([[-1.0000],
                [ 1.0000]], dtype=torch.float64)
    """
    k = torch.arange(1, matrix.shape[-2] + 1, dtype=torch.float64, device=matrix.device)[:, None]
    scaled = matrix.double() / (k * (k + 1)).sqrt()
    nothing = torch.zeros_like(scaled[..., :1, :])
    after = scaled.flip(-2).cumsum(-2).flip(-2)  # the sum of this and all later columns
    return torch.cat([after, nothing], -2) - torch.cat([nothing, k * scaled], -2)
