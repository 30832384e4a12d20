"""Measurements of a layer with many outputs, of which each sample keeps the most probable ones.

A softmax over a thousand classes is nearly all in a few of them. What is kept of a sample is its own
class and the classes of highest probability, ``KEPT`` in all (``OF_WORDS`` of a vocabulary), renormalised so that they sum to one: the
exact measurements of a slightly different softmax. Where the model or the targets spread over many more,
too much is lost for that, and selecting is refused (`TopHessian.held`, `check_kept_outputs`). The inputs are kept in half precision. So a sample
takes ``2 D + 12 KEPT`` bytes, whatever the number of outputs, and a product with the curvature takes
time proportional to the kept outputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.checks import warn
from prunesampler.base.compiled import FLUSH
from prunesampler.influence.hessians import SoftmaxHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.influence.top_kernels import Floats, bits, curve, over_threads
from prunesampler.influence.top_rows import TopHessian, TopRows

MANY, KEPT = 256, 64
"""Layers of more outputs than ``MANY`` keep ``KEPT`` of each sample."""
VOCABULARY, OF_WORDS = 8192, 256
"""Layers of more than ``VOCABULARY`` keep ``OF_WORDS``: the next word is never as sure as a class."""
TAIL = 2e-4
"""The least probable of the kept outputs that together hold no more than this share are set to zero."""
LEAST_INPUT, LARGEST_INPUT = 1e-3, 65504.0
"""Between these the largest input must be, so that half precision holds the others to three digits."""

LOST, MOST_LOST, MOST_LOST_OF_TOKENS = 0.03, 0.15, 0.35
"""Shares of the probability outside the kept outputs above which a user hears of it, and is refused.

With 12 and 31 % of a language model's next words elsewhere, shifts were 10 and 36 % off, and the sets that
were chosen were as good as those chosen with all words.
"""


@dataclass(frozen=True)
class TopMeasurements(Measurements):
    """Measurements of the kept outputs: ``delta`` has shape (n, k), ``inputs`` are float16.

    Examples:
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
            measured: Measurements under a cross-entropy over more than ``MANY`` outputs.
        """
        whole = measured.hessian
        assert isinstance(whole, SoftmaxHessian)
        p, mass = whole.probabilities.float(), whole.mass.float()[:, None]
        targets = mass * p - measured.delta.float()  # what delta is the distance from
        rank = torch.where(targets > 1e-3 * mass, targets + 2.0, p)
        outputs = rank.topk(kept_count(p.shape[1]), 1).indices
        outputs = outputs.gather(1, p.gather(1, outputs).argsort(1, descending=True))
        kept, pulls = p.gather(1, outputs), targets.gather(1, outputs)
        before, share = kept.cumsum(1) - kept, kept.sum(1)
        held = torch.minimum(share, pulls.sum(1) / targets.sum(1).clamp(min=1e-30))
        kept = kept * ((before < (1 - TAIL) * share[:, None]) | (pulls > 1e-3 * mass))
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
        total = torch.stack([self._bent(one.contiguous().numpy()) for one in stack])
        return self.hessian.reduce(total.reshape(*matrix.shape[:-2], *total.shape[1:])) / len(self)

    def subset(self, indices: Tensor) -> TopSubset:
        """These samples, for products alone: nothing is copied."""
        return TopSubset(
            self.delta, self.inputs, self.hessian, self.losses, self.labels, indices=indices
        )  # fmt: skip

    def order(self) -> Tensor:
        """The samples, int64, those of a class together: they share its rows in a product."""
        return self.hessian.outputs[:, 0].argsort(stable=True)

    def _bent(self, at: Floats) -> Tensor:
        """Sum of ``H_i at a_i a_i^T``, shape (C, D), float64."""
        top, order = self.hessian, self.order().numpy()
        arrays = (
            top.outputs.numpy(), top.probabilities.numpy(), top.mass.numpy(), bits(self.inputs), order,
        )  # fmt: skip

        def part(low: int, high: int) -> NDArray[np.float64]:
            total = np.zeros(at.shape)
            curve(*arrays, at, np.zeros_like(at), total, low, high)
            return total

        return torch.from_numpy(over_threads(part, len(order)))

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

    Examples:
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


def kept_count(outputs: int) -> int:
    """Number of outputs that are kept of each sample.

    Examples:
        >>> kept_count(10), kept_count(1000), kept_count(50_257)
        (10, 64, 256)
    """
    if outputs <= MANY:
        return outputs
    return KEPT if outputs <= VOCABULARY else OF_WORDS


def kept_outputs(measured: Measured) -> Measured:
    """Measurements that keep the most probable outputs of each sample, where a softmax has many.

    Raises:
        ValueError: If inputs are too large for half precision.

    Examples:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> measured = Measurements(delta, torch.ones(2, 3), hessian, losses)
        >>> kept_outputs(measured) is measured
        True
    """
    if isinstance(measured, Sequences):
        return replace(measured, tokens=kept_outputs(measured.tokens).tokens)
    if not isinstance(measured.hessian, SoftmaxHessian) or measured.hessian.size()[0] <= MANY:
        return measured
    largest = float(measured.inputs.abs().max()) if len(measured) else 0.0
    if largest > LARGEST_INPUT or 0 < largest < LEAST_INPUT:
        raise ValueError(
            f"the largest input of the layer is {largest:.3g}, but those of layers with more than {MANY} "
            f"outputs are kept in half precision, from about {LEAST_INPUT} to {LARGEST_INPUT:.0f}; normalise "
            "the features, or give curvature=KroneckerCurvature() (an approximation)"
        )
    return TopMeasurements.of(measured)


def check_kept_outputs(measurements: Measured) -> None:
    """Check that the outputs that are kept of each sample hold nearly all of the probability.

    Warns where a little lies elsewhere.

    Raises:
        ValueError: If too much lies elsewhere.
    """
    if not isinstance(measurements.hessian, TopHessian):
        return
    lost, sequences = (
        1 - float(measurements.hessian.held.mean()),
        isinstance(measurements, Sequences),
    )
    text = (
        f"of the layer's {measurements.hessian.width} outputs the "
        f"{measurements.hessian.outputs.shape[1]} most probable are kept of each "
        f"{'token' if sequences else 'sample'}, and {lost:.0%} of the probability or of the targets lies "
        "elsewhere"
    )
    if lost > (MOST_LOST_OF_TOKENS if sequences else MOST_LOST):
        other = ", or with curvature=KroneckerCurvature(), which keeps all outputs and is an approximation"
        raise ValueError(
            f"{text}: influences would be wrong; select later in training, when the model is surer, or with "
            f"less label smoothing{'' if sequences else other}"
        )
    if lost > LOST:
        off = "about as much" if sequences else "several times that"
        warn(f"{text}: the reported shifts may be off by {off}")
