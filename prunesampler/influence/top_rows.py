"""Gradients and Hessians over the outputs that are kept of each sample; see `prunesampler.influence.top`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.compiled import FLUSH
from prunesampler.influence.hessians import SoftmaxHessian, from_helmert, helmert, to_helmert
from prunesampler.influence.sparse import least_share, significant
from prunesampler.influence.top_kernels import add, bits, inner, over_threads


@dataclass(frozen=True)
class TopHessian:
    """Hessian of the cross-entropy over the kept outputs of each sample.

    Args:
        outputs: The kept outputs, the most probable first, int32, shape (n, k).
        probabilities: Their probabilities, which sum to one, shape (n, k).
        mass: Total target weight of each sample, shape (n,); 1 without class weights.
        held: Share of the probability, or of the target if that is less, that the kept outputs had,
            shape (n,).
        width: Number C of outputs of the layer.

    Examples:
        >>> top = TopHessian(torch.tensor([[3, 0]]).int(), torch.tensor([[0.5, 0.5]]), torch.ones(1), torch.ones(1), 4)
        >>> top.diagonal()
        tensor([[0.2500, 0.0000, 0.0000, 0.2500]])
    """

    outputs: Tensor
    probabilities: Tensor
    mass: Tensor
    held: Tensor
    width: int

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, by name."""
        return {
            "outputs": self.outputs, "probabilities": self.probabilities, "mass": self.mass,
            "held": self.held,
        }  # fmt: skip

    def spread(self) -> SoftmaxHessian:
        """The same with a probability for every output, shape (n, C): for chunks of samples."""
        whole = self.probabilities.new_zeros(len(self.mass), self.width)
        whole.scatter_(1, self.outputs.long(), self.probabilities)
        return SoftmaxHessian(whole, self.mass)

    def dense(self, basis: Tensor) -> Tensor:
        """Shape (n, K, K); see `prunesampler.influence.hessians.OutputHessian`."""
        return self.spread().dense(basis)

    def apply(self, vectors: Tensor) -> Tensor:
        """Shape (..., n, C); see `prunesampler.influence.hessians.OutputHessian`."""
        return self.spread().apply(vectors)

    def diagonal(self) -> Tensor:
        """Shape (n, C); see `prunesampler.influence.hessians.OutputHessian`."""
        return self.spread().diagonal()

    def total(self) -> Tensor:
        """Shape (C, C); see `prunesampler.influence.hessians.OutputHessian`."""
        return self.spread().total()

    def basis(self) -> Tensor:
        """Helmert columns, shape (C, C - 1)."""
        return helmert(self.width)

    def size(self) -> tuple[int, int]:
        """C and C - 1."""
        return self.width, self.width - 1

    def expand(self, matrix: Tensor) -> Tensor:
        """See `prunesampler.influence.hessians.OutputHessian`."""
        return from_helmert(matrix)

    def reduce(self, matrix: Tensor) -> Tensor:
        """See `prunesampler.influence.hessians.OutputHessian`."""
        return to_helmert(matrix)


@dataclass(frozen=True)
class TopRows:
    """Gradients of n samples with respect to the kept outputs; stands for n matrices of shape (K, D).

    Args:
        delta: Gradients with respect to the kept outputs, float32, shape (n, k).
        inputs: Inputs of the layer, float16, shape (n, D).
        hessian: Knows which outputs were kept.

    Examples:
        >>> top = TopHessian(torch.tensor([[3, 0]]).int(), torch.tensor([[0.5, 0.5]]), torch.ones(1), torch.ones(1), 4)
        >>> rows = TopRows(torch.tensor([[-0.5, 0.5]]), torch.tensor([[2.0]]).half(), top)
        >>> top.expand(rows.sum()).flatten().round().tolist()
        [1.0, 0.0, -0.0, -1.0]
    """

    delta: Tensor
    inputs: Tensor
    hessian: TopHessian

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.delta)

    def __getitem__(self, index: Tensor) -> TopRows:
        top = self.hessian
        chosen = TopHessian(
            top.outputs[index], top.probabilities[index], top.mass[index], top.held[index], top.width
        )  # fmt: skip
        return TopRows(self.delta[index], self.inputs[index], chosen)

    @property
    def right(self) -> Tensor:
        """Inputs of the layer, by the name that `prunesampler.influence.rows.RankOne` has for them."""
        return self.inputs

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one matrix."""
        return self.hessian.width - 1, self.inputs.shape[1]

    def norms(self) -> Tensor:
        """Frobenius norm of every matrix, shape (n,), float64."""
        starts = range(0, len(self), FLUSH)
        norms = [self.inputs[k : k + FLUSH].double().norm(dim=1) for k in starts]
        found: Tensor = torch.cat(norms) * self.delta.double().norm(dim=1)
        return found

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, outputs and values of ``delta`` where it is not small; see `significant`."""
        samples, places = significant(self.delta, least_share(self.delta))
        return samples, self.hessian.outputs[samples, places].long(), self.delta[samples, places]

    def sum(self, indices: Tensor | None = None) -> Tensor:
        """Sum of the chosen matrices (all by default), shape (K, D), float64."""
        weights = torch.ones(len(self))
        if indices is not None:
            weights.zero_()[indices] = 1.0
        return self.weighted_sum(weights)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum of the matrices times their weights, shape (n,); shape (K, D), float64."""
        width = (self.hessian.width, self.inputs.shape[1])
        given = weights.float().numpy()
        arrays = (self.hessian.outputs.numpy(), self.delta.numpy(), bits(self.inputs), given)

        def part(low: int, high: int) -> NDArray[np.float64]:
            total = np.zeros(width)
            add(*arrays, np.zeros(width, dtype=np.float32), total, low, high)
            return total

        return to_helmert(torch.from_numpy(over_threads(part, len(self))))

    def inner(self, matrix: Tensor) -> Tensor:
        """Inner product of every matrix with one of shape (K, D); shape (n,), float64."""
        at, found = from_helmert(matrix).float().numpy(), np.zeros(len(self))
        arrays = (self.hessian.outputs.numpy(), self.delta.numpy(), bits(self.inputs), at, found)

        def part(low: int, high: int) -> NDArray[np.float64]:
            inner(*arrays, low, high)
            return np.zeros(0)

        over_threads(part, len(self))
        return torch.from_numpy(found)
