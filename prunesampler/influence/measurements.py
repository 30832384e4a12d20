"""What scoring takes from n samples: gradients and curvature of their losses at one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.rows import CHUNK, RankOne


class OutputHessian(Protocol):
    """Second derivative of each sample's loss by the layer's C outputs."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Everything it holds, first dimension n; the constructor takes them by these names."""

    def dense(self, basis: Tensor) -> Tensor:
        """``basis^T H_i basis`` for every sample, shape (n, K, K), for a basis of shape (C, K)."""

    def apply(self, vectors: Tensor) -> Tensor:
        """``H_i v_i`` for every sample, shape (n, C), for vectors of shape (n, C), in their dtype."""

    def total(self) -> Tensor:
        """Sum of all ``H_i``, shape (C, C), float64, in no more memory than the tensors held."""

    def basis(self) -> Tensor:
        """Orthonormal columns that span what the loss can see, shape (C, K), float64."""


@dataclass(frozen=True)
class SoftmaxHessian:
    """``w_i (diag p_i - p_i p_i^T)``, for cross-entropy.

    Softmax does not see a shift of all outputs, so the all-ones direction carries no curvature and
    no gradient. The basis leaves it out: C - 1 Helmert columns.

    Args:
        probabilities: shape (n, C).
        mass: total target weight of each sample, shape (n,); 1 without class weights.
    """

    probabilities: Tensor
    mass: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The two arguments."""
        return {"probabilities": self.probabilities, "mass": self.mass}

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        p, q = self.probabilities, basis.to(self.probabilities)
        seen = p @ q
        spread = torch.einsum("ck,nc,cl->nkl", q, p, q) - seen[:, :, None] * seen[:, None, :]
        return self.mass[:, None, None] * spread

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        p = self.probabilities.to(vectors)
        spread = p * (vectors - (p * vectors).sum(1, keepdim=True))
        return self.mass.to(vectors)[:, None] * spread

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        p = self.probabilities.double()
        weighted = self.mass.double()[:, None] * p
        return torch.diag(weighted.sum(0)) - weighted.T @ p

    def basis(self) -> Tensor:
        """Helmert columns, shape (C, C - 1): orthonormal and orthogonal to ones."""
        return helmert(self.probabilities.shape[1])


@dataclass(frozen=True)
class _FullHessian:
    """A Hessian that may have curvature in every direction, so its basis is the identity."""

    values: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The one argument."""
        return {"values": self.values}

    def basis(self) -> Tensor:
        """The identity, shape (C, C)."""
        return torch.eye(self.values.shape[1], dtype=torch.float64)


@dataclass(frozen=True)
class DiagonalHessian(_FullHessian):
    """``diag(values_i)``, for losses that treat the outputs apart.

    Args:
        values: shape (n, C).
    """

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        q = basis.to(self.values)
        return torch.einsum("ck,nc,cl->nkl", q, self.values, q)

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        return self.values.to(vectors) * vectors

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        return torch.diag(self.values.double().sum(0))


@dataclass(frozen=True)
class DenseHessian(_FullHessian):
    """Any symmetric matrices, from automatic differentiation.

    Args:
        values: shape (n, C, C).
    """

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see :class:`OutputHessian`."""
        q = basis.to(self.values)
        return torch.einsum("ck,ncd,dl->nkl", q, self.values, q)

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (n, C); see :class:`OutputHessian`."""
        return torch.einsum("ncd,nd->nc", self.values.to(vectors), vectors)

    def total(self) -> Tensor:
        """Shape (C, C); see :class:`OutputHessian`."""
        return self.values.double().sum(0)


def helmert(size: int) -> Tensor:
    """Orthonormal basis of the vectors of length ``size`` that sum to zero, float64.

    Returns:
        Shape (size, size - 1); column k is constant on the first k + 1 rows.
    """
    basis = torch.zeros(size, size - 1, dtype=torch.float64)
    for k in range(1, size):
        scale = (k * (k + 1)) ** -0.5
        basis[:k, k - 1] = scale
        basis[k, k - 1] = -k * scale
    return basis


@dataclass(frozen=True)
class Measurements:
    """Everything about the scored layer that n samples have, and nothing else.

    Memory: ``4 n (2 C + D + 4)`` bytes with cross-entropy in float32.

    Args:
        delta: gradient of each loss by the layer's outputs, shape (n, C).
        inputs: the layer's inputs, shape (n, D); the last column is one if the layer has a bias.
        hessian: second derivative of each loss by the outputs.
        losses: shape (n,).
        labels: class of each sample, int64, shape (n,), where the loss knows it.
    """

    delta: Tensor
    inputs: Tensor
    hessian: OutputHessian
    losses: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.delta)

    def __getitem__(self, index: Tensor | slice) -> Measurements:
        return self.map(lambda tensors: tensors[0][index])

    def chunks(self) -> Iterator[Measurements]:
        """Consecutive slices of at most ``CHUNK`` samples."""
        for start in range(0, len(self), CHUNK):
            yield self[start : start + CHUNK]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one gradient in the basis of the loss."""
        return self.hessian.basis().shape[1], self.inputs.shape[1]

    def rows(self) -> RankOne:
        """Gradients ``g_i`` in the basis of the loss, n matrices of shape (K, D)."""
        return RankOne(self.delta @ self.hessian.basis().to(self.delta), self.inputs)

    def gauss_newton(self, dtype: torch.dtype | None = None) -> Tensor:
        """Mean GGN without damping, shape (R, R) with R = K * D, float64, index k * D + d.

        Products over ``CHUNK`` samples are added in float64. Only the blocks on and above the
        diagonal are computed.

        Args:
            dtype: precision of the products; default that of the tensors held.
        """
        basis = self.hessian.basis()
        outputs, inputs = self.shape
        total = torch.zeros(
            outputs, inputs, outputs, inputs, dtype=torch.float64, device=self.inputs.device
        )
        for chunk in self.chunks():
            a, weights = chunk.inputs.to(dtype), chunk.hessian.dense(basis).to(dtype)
            for k in range(outputs):
                weighted = (weights[:, k, k:, None] * a[:, None, :]).flatten(1)
                total[k, :, k:, :] += (a.T @ weighted).view(inputs, outputs - k, inputs)
        for k in range(outputs):
            for other in range(k + 1, outputs):
                total[other, :, k, :] = total[k, :, other, :].T
        return total.div_(len(self)).view(outputs * inputs, outputs * inputs)

    def curvature_product(self, matrix: Tensor) -> Tensor:
        """Mean GGN without damping, applied to a matrix of shape (K, D); shape (K, D), float64.

        ``mean of B^T H_i B matrix a_i a_i^T``, with the basis B of the loss: two thin products per
        chunk of samples, in the precision of the inputs, added up in float64. Nothing of size R is
        made.
        """
        basis = self.hessian.basis().to(self.inputs.device)
        outputs = basis @ matrix.double()
        total = torch.zeros_like(outputs)
        for chunk in self.chunks():
            bent = chunk.hessian.apply(chunk.inputs @ outputs.T.to(chunk.inputs))
            total += (bent.T @ chunk.inputs).double()
        return basis.T @ total / len(self)

    def kronecker_factors(self) -> tuple[Tensor, Tensor]:
        """Mean output Hessian, shape (K, K), and mean outer product of the inputs, (D, D), float64."""
        basis = self.hessian.basis()
        outer = torch.zeros(len(basis), len(basis), dtype=torch.float64)
        for chunk in self.chunks():
            outer += chunk.hessian.total()
        inner = RankOne(self.inputs, self.inputs).sum()
        return basis.T @ outer @ basis / len(self), inner / len(self)

    def map(
        self, change: Callable[[list[Tensor]], Tensor], others: Sequence[Measurements] = ()
    ) -> Measurements:
        """Apply a function to every tensor, together with the same tensors of ``others``.

        Labels that some of them lack are lost for all.
        """
        all_of_them = [self, *others]
        tensors = [{"delta": s.delta, "inputs": s.inputs, "losses": s.losses} for s in all_of_them]
        fields = {name: change([t[name] for t in tensors]) for name in tensors[0]}
        held = [s.hessian.tensors for s in all_of_them]
        hessian = type(self.hessian)(**{k: change([t[k] for t in held]) for k in held[0]})
        known = [s.labels for s in all_of_them if s.labels is not None]
        labels = change(known) if len(known) == len(all_of_them) else None
        return Measurements(**fields, hessian=hessian, labels=labels)

    def signature(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape per sample and type of every tensor, to compare between ranks."""
        found: list[tuple[tuple[int, ...], str]] = []

        def note(tensors: list[Tensor]) -> Tensor:
            found.append((tuple(tensors[0].shape[1:]), str(tensors[0].dtype)))
            return tensors[0]

        self.map(note)
        return found

    @staticmethod
    def cat(parts: Sequence[Measurements]) -> Measurements:
        """Put measurements of several batches behind one another.

        Labels are known only where every batch has them.
        """
        return parts[0].map(torch.cat, parts[1:])
