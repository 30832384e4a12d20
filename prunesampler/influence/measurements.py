"""What one pass over n samples yields: gradients and curvature of their losses at one layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunesampler.influence.hessians import OutputHessian
from prunesampler.influence.rows import CHUNK, RankOne


@dataclass(frozen=True)
class Measurements:
    """All that is known of n samples once they are measured; neither model nor data is used again.

    Memory: ``4 n (2 C + D + 4)`` bytes with cross-entropy in float32.

    Args:
        delta: Gradient of each loss with respect to the layer's outputs, shape (n, C).
        inputs: Inputs of the layer, shape (n, D); the last column is one if the layer has a bias.
        hessian: Second derivative of each loss with respect to the outputs.
        losses: Loss of each sample, shape (n,).
        labels: Class of each sample, int64, shape (n,), or None if unknown.

    Examples:
        >>> from prunesampler import SquaredError
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, targets)
        >>> Measurements(delta, inputs, hessian, losses).gauss_newton()  # the mean of 2 x^2
        tensor([[5.]], dtype=torch.float64)
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
        return self.map(lambda tensor: tensor[index])

    def subset(self, indices: Tensor) -> Measurements:
        """The measurements of these samples, int64, ascending."""
        return self[indices]

    @property
    def tokens(self) -> Measurements:
        """What has a loss and an input of its own: the samples themselves, if they are no sequences."""
        return self

    @property
    def errors(self) -> Tensor:
        """Norm of the gradient of each loss with respect to the outputs, shape (n,), float64."""
        found: Tensor = self.delta.double().norm(dim=1)
        return found

    def finite(self) -> Tensor:
        """Whether all that was measured of each sample is finite, shape (n,)."""
        whole = self.delta.isfinite().all(1) & self.inputs.isfinite().all(1)
        return whole & self.losses.isfinite()

    def chunks(self) -> Iterator[Measurements]:
        """Consecutive slices of at most ``CHUNK`` samples."""
        for start in range(0, len(self), CHUNK):
            yield self[start : start + CHUNK]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one gradient in the basis of the loss."""
        return self.hessian.size()[1], self.inputs.shape[1]

    @property
    def parameters(self) -> int:
        """Number of parameters R = K * D that the loss can tell apart."""
        return math.prod(self.shape)

    def mean_eigenvalue(self) -> float:
        """Mean eigenvalue of the mean GGN without damping: its trace over R."""
        trace = 0.0
        for chunk in self.chunks():
            norms = chunk.inputs.double().square().sum(1)
            trace += float(chunk.hessian.diagonal().double().sum(1) @ norms)
        return trace / len(self) / self.parameters

    def rows(self) -> RankOne:
        """Gradients ``g_i`` in the basis of the loss, n matrices of shape (K, D)."""
        reduce = self.hessian.reduce
        parts = [reduce(chunk.delta[..., None])[..., 0].to(self.delta) for chunk in self.chunks()]
        return RankOne(torch.cat(parts), self.inputs)

    def output_weights(self, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, outputs and ``H_i[c, c]``, three tensors of shape (nnz,), in the samples' order.

        Args:
            least: Smallest weight that is listed, as a share of the largest of all.
        """
        largest = max(float(chunk.hessian.diagonal().max()) for chunk in self.chunks())
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, chunk in enumerate(self.chunks()):
            weights = chunk.hessian.diagonal().float()
            samples, outputs = (weights > least * largest).nonzero(as_tuple=True)
            found.append((samples + number * CHUNK, outputs, weights[samples, outputs]))
        samples, outputs, weights = (torch.cat(part) for part in zip(*found, strict=True))
        return samples, outputs, weights

    def gauss_newton(self, dtype: torch.dtype | None = None) -> Tensor:
        """Mean GGN without damping, shape (R, R) with R = K * D, float64, index k * D + d.

        Products over ``CHUNK`` samples are added in float64. Only the blocks on and above the
        diagonal are computed.

        Args:
            dtype: Precision of the products; by default that of the measurements.
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
        """Mean GGN without damping, applied to matrices of shape (..., K, D); float64.

        ``mean of B^T H_i B matrix a_i a_i^T``, with the basis B of the loss: two thin products per
        chunk of samples, in the precision of the inputs, added up in float64. Nothing of size R is
        made.
        """
        outputs = self.hessian.expand(matrix)
        seen = outputs.mT.to(self.inputs)
        total = torch.zeros_like(outputs)
        for chunk in self.chunks():
            bent = chunk.hessian.apply(chunk.inputs @ seen)
            total += bent.mT @ chunk.inputs
        return self.hessian.reduce(total) / len(self)

    def kronecker_factors(self) -> tuple[Tensor, Tensor]:
        """Mean output Hessian, shape (K, K), and mean outer product of the inputs, (D, D), float64."""
        basis = self.hessian.basis()
        outer = torch.zeros(len(basis), len(basis), dtype=torch.float64)
        for chunk in self.chunks():
            outer += chunk.hessian.total()
        inner = RankOne(self.inputs, self.inputs).sum()
        return basis.T @ outer @ basis / len(self), inner / len(self)

    def map(self, change: Callable[[Tensor], Tensor]) -> Measurements:
        """The same measurements with a function applied to every tensor."""
        return self.with_tensors({name: change(tensor) for name, tensor in self.tensors().items()})

    def signature(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape per sample and dtype of every tensor, to compare between ranks."""
        return [(name, tuple(t.shape[1:]), t.dtype) for name, t in self.tensors().items()]

    @staticmethod
    def cat(parts: Sequence[Measurements]) -> Measurements:
        """Concatenate measurements of the same layer and loss.

        Labels are known only where every part has them.
        """
        held = [part.tensors() for part in parts]
        common = [name for name in held[0] if all(name in tensors for tensors in held)]
        return parts[0].with_tensors(
            {n: torch.cat([tensors[n] for tensors in held]) for n in common}
        )

    def bytes(self) -> int:
        """Bytes that all tensors take."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors held, by name, including those of the Hessian."""
        held = {"delta": self.delta, "inputs": self.inputs, "losses": self.losses}
        held |= {f"hessian.{name}": tensor for name, tensor in self.hessian.tensors.items()}
        return held if self.labels is None else {**held, "labels": self.labels}

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Measurements:
        """Measurements of the same kind that hold these tensors, named as by :meth:`tensors`."""
        hessian = {name: tensors[f"hessian.{name}"] for name in self.hessian.tensors}
        return replace(
            self,
            delta=tensors["delta"],
            inputs=tensors["inputs"],
            hessian=replace(self.hessian, **hessian),  # type: ignore[type-var]
            losses=tensors["losses"],
            labels=tensors.get("labels"),
        )
