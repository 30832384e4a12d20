"""Measurements of a layer with many outputs, of which each sample keeps the most probable ones.

A softmax over a thousand classes is nearly all in a few of them. What is kept of a sample is its own
class and the classes of highest probability, ``KEPT`` in all, renormalised so that they sum to one: the
exact measurements of a slightly different softmax. The inputs are kept in half precision. So a sample
takes ``2 D + 12 KEPT`` bytes, whatever the number of outputs, and a product with the curvature takes
time proportional to the kept outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.compiled import compiled, half
from prunesampler.influence.hessians import SoftmaxHessian, from_helmert, helmert, to_helmert
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sparse import least_share, significant

MANY, KEPT = 256, 64
"""Layers of more outputs than ``MANY`` keep ``KEPT`` of each sample."""
TAIL = 2e-4
"""The least probable of the kept outputs that together hold no more than this share are set to zero."""
NOTHING = 1e-6
"""Probabilities and gradients below this are left out of products."""
LARGEST_INPUT = 65504.0
"""The largest number in half precision."""
FLUSH = 2048
"""Samples whose sum is formed in float32 before it is added in float64."""

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TopHessian:
    """Hessian of the cross-entropy over the kept outputs of each sample.

    Args:
        outputs: The kept outputs, the most probable first, int32, shape (n, k).
        probabilities: Their probabilities, which sum to one, shape (n, k).
        mass: Total target weight of each sample, shape (n,); 1 without class weights.
        held: Share of the probability that the kept outputs had, shape (n,).
        width: Number C of outputs of the layer.

    Example:
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

    Example:
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
        arrays = (self.hessian.outputs.numpy(), self.delta.numpy(), _bits(self.inputs), given)

        def part(low: int, high: int) -> NDArray[np.float64]:
            total = np.zeros(width)
            _add(*arrays, np.zeros(width, dtype=np.float32), total, low, high)
            return total

        return to_helmert(torch.from_numpy(_over_threads(part, len(self))))

    def inner(self, matrix: Tensor) -> Tensor:
        """Inner product of every matrix with one of shape (K, D); shape (n,), float64."""
        at, found = from_helmert(matrix).float().numpy(), np.zeros(len(self))
        arrays = (self.hessian.outputs.numpy(), self.delta.numpy(), _bits(self.inputs), at, found)

        def part(low: int, high: int) -> NDArray[np.float64]:
            _inner(*arrays, low, high)
            return np.zeros(0)

        _over_threads(part, len(self))
        return torch.from_numpy(found)


@dataclass(frozen=True)
class TopMeasurements(Measurements):
    """Measurements of the kept outputs: ``delta`` has shape (n, k), ``inputs`` are float16.

    Example:
        >>> from prunesampler import CrossEntropy
        >>> outputs, inputs, labels = torch.randn(3, 300), torch.randn(3, 2), torch.tensor([7, 8, 9])
        >>> losses, delta, hessian = CrossEntropy().derivatives(outputs, labels)
        >>> top = TopMeasurements.of(Measurements(delta, inputs, hessian, losses, labels))
        >>> top.delta.shape, top.shape
        (torch.Size([3, 64]), (299, 2))
    """

    hessian: TopHessian

    @classmethod
    def of(cls, measured: Measurements) -> TopMeasurements:
        """Keep the most probable outputs, and those that a target pulls at.

        Args:
            measured: Measurements under a cross-entropy over more than ``KEPT`` outputs.
        """
        whole = measured.hessian
        assert isinstance(whole, SoftmaxHessian)
        p, mass = whole.probabilities.float(), whole.mass.float()[:, None]
        targets = mass * p - measured.delta.float()  # what delta is the distance from
        rank = torch.where(targets > 1e-3 * mass, targets + 2.0, p)
        outputs = rank.topk(KEPT, 1).indices
        outputs = outputs.gather(1, p.gather(1, outputs).argsort(1, descending=True))
        kept, pulls = p.gather(1, outputs), targets.gather(1, outputs)
        held = kept.sum(1)
        before = kept.cumsum(1) - kept
        kept = kept * ((before < (1 - TAIL) * held[:, None]) | (pulls > 1e-3 * mass))
        kept = kept / kept.sum(1, keepdim=True)
        delta = mass * kept - pulls
        # As in the closed form: the pulled output's own difference would cancel in float32.
        pulled = delta.abs().argmax(1, keepdim=True)
        others = delta.sum(1, keepdim=True) - delta.gather(1, pulled)
        delta = delta.scatter(1, pulled, -others)
        return cls(
            delta,
            measured.inputs.half(),
            TopHessian(outputs.int(), kept, whole.mass.float(), held, p.shape[1]),
            measured.losses,
            measured.labels,
        )

    def rows(self) -> TopRows:  # type: ignore[override]
        """Gradients ``g_i``."""
        return TopRows(self.delta, self.inputs, self.hessian)

    def output_weights(self, least: float) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, outputs and ``H_i[c, c]`` of the kept outputs; see the base class."""
        p = self.hessian.probabilities
        weights = self.hessian.mass[:, None] * p * (1 - p)
        samples, places = (weights > least * weights.max()).nonzero(as_tuple=True)
        return samples, self.hessian.outputs[samples, places].long(), weights[samples, places]

    def curvature_product(self, matrix: Tensor) -> Tensor:
        """Mean GGN without damping, applied to matrices of shape (..., K, D); float64."""
        stack = (
            self.hessian.expand(matrix)
            .float()
            .reshape(-1, self.hessian.width, self.inputs.shape[1])
        )
        total = torch.stack([self._curve(one.contiguous().numpy()) for one in stack])
        return self.hessian.reduce(total.reshape(*matrix.shape[:-2], *total.shape[1:])) / len(self)

    def subset(self, indices: Tensor) -> TopSubset:
        """These samples, for products alone: nothing is copied."""
        return TopSubset(
            self.delta, self.inputs, self.hessian, self.losses, self.labels, indices=indices
        )  # fmt: skip

    def order(self) -> Tensor:
        """The samples, int64, those of a class together: they share its rows in a product."""
        return self.hessian.outputs[:, 0].argsort(stable=True)

    def _curve(self, at: Floats) -> Tensor:
        """Sum of ``H_i at a_i a_i^T``, shape (C, D), float64."""
        top, order = self.hessian, self.order().numpy()
        arrays = (
            top.outputs.numpy(), top.probabilities.numpy(), top.mass.numpy(), _bits(self.inputs), order,
        )  # fmt: skip

        def part(low: int, high: int) -> NDArray[np.float64]:
            total = np.zeros(at.shape)
            _curve(*arrays, at, np.zeros_like(at), total, low, high)
            return total

        return torch.from_numpy(_over_threads(part, len(order)))

    def mean_eigenvalue(self) -> float:
        """Mean eigenvalue of the mean GGN without damping: its trace over R."""
        p = self.hessian.probabilities
        traces = self.hessian.mass * (p * (1 - p)).sum(1)
        starts = range(0, len(self), FLUSH)
        norms = torch.cat([self.inputs[k : k + FLUSH].float().square().sum(1) for k in starts])
        return float(traces.double() @ norms.double()) / len(self) / self.parameters


@dataclass(frozen=True)
class TopSubset(TopMeasurements):
    """Some of the samples, of which only products with the curvature are asked for.

    Args:
        indices: The samples, int64, ascending; all other arguments are of all samples.

    Example:
        >>> from prunesampler import CrossEntropy
        >>> outputs, inputs, labels = torch.randn(3, 300), torch.randn(3, 2), torch.tensor([7, 8, 9])
        >>> losses, delta, hessian = CrossEntropy().derivatives(outputs, labels)
        >>> top = TopMeasurements.of(Measurements(delta, inputs, hessian, losses, labels))
        >>> len(top.subset(torch.tensor([0, 2])))
        2
    """

    indices: Tensor = field(kw_only=True)

    def __len__(self) -> int:
        """Number of samples in the subset."""
        return len(self.indices)

    def order(self) -> Tensor:
        """The samples of the subset, int64, those of a class together."""
        first = self.hessian.outputs[self.indices, 0]
        return self.indices[first.argsort(stable=True)]


def kept_outputs(measured: Measurements) -> Measurements:
    """Measurements that keep the most probable outputs of each sample, where a softmax has many.

    Raises:
        ValueError: If inputs are too large for half precision.

    Example:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> measured = Measurements(delta, torch.ones(2, 3), hessian, losses)
        >>> kept_outputs(measured) is measured
        True
    """
    if not isinstance(measured.hessian, SoftmaxHessian) or measured.hessian.size()[0] <= MANY:
        return measured
    largest = float(measured.inputs.abs().max())
    if largest > LARGEST_INPUT:
        raise ValueError(
            f"an input of the layer is {largest:.3g}, but those of layers with more than {MANY} outputs "
            f"are kept in half precision, which ends at {LARGEST_INPUT:.0f}; normalise the features, or "
            "give curvature=KroneckerCurvature()"
        )
    return TopMeasurements.of(measured)


def _bits(inputs: Tensor) -> NDArray[np.uint16]:
    """Numbers in half precision as their bits."""
    bits: NDArray[np.uint16] = inputs.contiguous().numpy().view(np.uint16)
    return bits


def _over_threads(
    part: Callable[[int, int], NDArray[np.float64]], size: int
) -> NDArray[np.float64]:
    """Sum of what a function gives for a range of samples per thread, in the order of the ranges."""
    threads = max(1, min(torch.get_num_threads(), size // FLUSH))
    edges = np.linspace(0, size, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(part, edges[:-1], edges[1:]))
    total = found[0]
    for more in found[1:]:
        total += more
    return total


@compiled
def _flush(part: Floats, total: NDArray[np.float64]) -> None:
    """Move a sum to another of more digits."""
    for c in range(part.shape[0]):
        for d in range(part.shape[1]):
            total[c, d] += part[c, d]
            part[c, d] = 0.0


@partial(compiled, fastmath=True)
def _curve(
    outputs: NDArray[np.int32], probabilities: Floats, mass: Floats, inputs: NDArray[np.uint16],
    order: NDArray[np.int64], at: Floats, part: Floats, total: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Add ``H_i at a_i a_i^T`` of the samples ``order[low:high]`` to ``total``."""
    width, kept = inputs.shape[1], outputs.shape[1]
    row, seen = np.empty(width, np.float32), np.empty(kept, np.float32)
    for step in range(low, high):
        i = order[step]
        for d in range(width):
            row[d] = half(inputs[i, d])
        mean, last = np.float32(0), kept
        for e in range(kept):
            if probabilities[i, e] < NOTHING:  # the most probable come first
                last = e
                break
            c, found = outputs[i, e], np.float32(0)
            for d in range(width):
                found += at[c, d] * row[d]
            seen[e] = found
            mean += probabilities[i, e] * found
        for e in range(last):
            c, bent = outputs[i, e], mass[i] * probabilities[i, e] * (seen[e] - mean)
            for d in range(width):
                part[c, d] += bent * row[d]
        if (step - low) % FLUSH == FLUSH - 1 or step == high - 1:
            _flush(part, total)


@partial(compiled, fastmath=True)
def _add(
    outputs: NDArray[np.int32], delta: Floats, inputs: NDArray[np.uint16], weights: Floats,
    part: Floats, total: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Add the gradients of the samples from ``low`` to before ``high``, times weights, to ``total``."""
    width = inputs.shape[1]
    row = np.empty(width, np.float32)
    for i in range(low, high):
        if weights[i] != 0.0:
            for d in range(width):
                row[d] = half(inputs[i, d])
            for e in range(outputs.shape[1]):
                c, value = outputs[i, e], weights[i] * delta[i, e]
                if abs(value) < NOTHING:
                    continue
                for d in range(width):
                    part[c, d] += value * row[d]
        if (i - low) % FLUSH == FLUSH - 1 or i == high - 1:
            _flush(part, total)


@partial(compiled, fastmath=True)
def _inner(
    outputs: NDArray[np.int32], delta: Floats, inputs: NDArray[np.uint16], at: Floats,
    found: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Inner products of the gradients from ``low`` to before ``high`` with a matrix."""
    width = inputs.shape[1]
    for i in range(low, high):
        for e in range(outputs.shape[1]):
            if abs(delta[i, e]) < NOTHING:
                continue
            c, product = outputs[i, e], np.float32(0)
            for d in range(width):
                product += at[c, d] * half(inputs[i, d])
            found[i] += delta[i, e] * product
