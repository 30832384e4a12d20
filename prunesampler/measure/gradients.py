"""Per-sample gradients of a linear layer, from one forward pass.

For a linear layer used once per sample, ``z = W a + b``, the gradient of sample i's loss with respect
to (W, b) is ``delta_i ⊗ [a_i, 1]``, where ``delta_i`` is its gradient with respect to z. So a hook on
the layer is enough: no backward pass runs through the rest of the network.

A layer may also be applied at several positions of a sample, such as a classifier of tokens of which
one is picked, or a 1 x 1 convolution whose outputs are pooled. If the loss depends only on a weighted
sum ``z_i = sum over p of w_ip (W a_ip + b)`` of the outputs, that is a linear layer too, with inputs
``sum over p of w_ip [a_ip, 1]``, and the gradient is still rank one. This is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunesampler.influence.hessians import DenseHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured
from prunesampler.measure.batches import classes_in
from prunesampler.measure.heads import (
    PER_TOKEN,
    ROUNDING,
    Losses,
    check_unreduced,
    find_layer,
)
from prunesampler.measure.losses import ClosedFormLoss, CrossEntropy, Derivatives
from prunesampler.measure.positions import (
    curvature_lines_up,
    depends_on_others,
    gradient,
    shares_in,
    summed,
    weights_in,
)
from prunesampler.measure.taps import ALIGNED, Tap, attached
from prunesampler.measure.tokens import Keep, TokenCrossEntropy, measure_tokens

MAX_DENSE_OUTPUTS = 128
"""Largest number C of outputs for which autograd computes Hessians, C * C numbers per sample."""
CHECKED = 1e-2
"""Largest relative difference from autograd's gradient, in full precision."""


class GradientSource(Protocol):
    """Measures the samples of one batch."""

    def __call__(self, model: nn.Module, batch: Any) -> Measured:
        """Measurements of all samples in the batch, in its order."""


@dataclass(frozen=True)
class HeadGradients:
    """Gradients of the losses with respect to one linear layer.

    Args:
        head: The layer, a module of the model or its name: an ``nn.Linear``, a 1 x 1 convolution, or
            any module with a weight matrix that returns ``W a + b``.
        losses: One loss per sample. ``CrossEntropy``, ``BinaryCrossEntropy`` and ``SquaredError`` are
            used in closed form if the model's output is the layer's output, or a weighted sum of it
            over positions. Anything else, any function ``(model, batch) -> (b,)``, is differentiated
            automatically with respect to the layer's output. `TokenCrossEntropy` sums over tokens.
        keep: What is kept of the measurements of tokens; by default everything.

    Examples:
        >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
        >>> measured = HeadGradients("2")(model, (torch.randn(5, 8), torch.arange(5) % 3))
        >>> measured.delta.shape, measured.inputs.shape
        (torch.Size([5, 3]), torch.Size([5, 5]))
    """

    head: nn.Module | str
    losses: Losses = field(default_factory=CrossEntropy)
    keep: Keep = lambda measured: measured

    def __call__(self, model: nn.Module, batch: Any) -> Measured:
        """Measure one batch.

        Args:
            model: The model in evaluation mode, on the batch's device.
            batch: A batch that ``losses`` takes.

        Raises:
            ValueError: If the layer is not trained, does not run once per sample, or is applied at
                positions that the loss does not merely sum; or if the losses are not one number
                per sample.
        """
        name, layer = find_layer(model, self.head)
        tap = Tap(name)
        with attached(layer, tap):
            if isinstance(self.losses, TokenCrossEntropy):
                outputs, targets = self.losses.outputs_and_targets(model, batch)
                return measure_tokens(self.losses, outputs, targets, tap, self.keep)
            if not isinstance(self.losses, ClosedFormLoss):
                derivatives, weights = _differentiate(self.losses(model, batch), tap)
                labels = classes_in(batch, *derivatives.delta.shape)
            else:
                outputs, targets = self.losses.outputs_and_targets(model, batch)
                labels = self.losses.classes(targets)
                closed = _position_weights(outputs, tap)
                if closed is None:
                    derivatives, weights = _differentiate(self.losses.values(outputs, targets), tap)
                else:
                    outputs, weights = closed
                    derivatives = self.losses.derivatives(outputs, targets)
        return Measurements(
            derivatives.delta,
            _summed_inputs(tap, weights),
            derivatives.hessian,
            derivatives.losses.detach(),
            labels,
        )


def _summed_inputs(tap: Tap, weights: Tensor | None) -> Tensor:
    """The layer's inputs with the one for the bias, summed over positions, shape (b, D)."""
    assert tap.inputs is not None
    ones = tap.inputs.new_ones(*tap.inputs.shape[:2], 1)
    inputs = torch.cat([tap.inputs, ones], dim=2) if tap.bias else tap.inputs
    return inputs[:, 0] if weights is None else summed(inputs, weights)


def _position_weights(outputs: Tensor, tap: Tap) -> tuple[Tensor, Tensor | None] | None:
    """Weights w with which the layer's outputs, summed over positions, give the model's output.

    Returns:
        That sum in full precision, shape (b, C), and w, shape (b, P), or None for w if the outputs
        are the same; None if the model's output is anything else.
    """
    leaf = tap.leaf
    if tap.saw(outputs):
        return leaf.detach()[:, 0], None
    if outputs.shape != (len(leaf), leaf.shape[2]) or not outputs.requires_grad:
        return None
    tolerance = ALIGNED if outputs.element_size() > 2 else ROUNDING
    weights = weights_in(outputs, leaf, max(tolerance, tap.tolerance))
    return None if weights is None else (summed(leaf.detach(), weights), weights)


def _differentiate(values: Tensor, tap: Tap) -> tuple[Derivatives, Tensor | None]:
    """Gradient and Hessian of the losses with respect to the layer's output, by autograd.

    Returns:
        Both for the sum over positions, and the weights of the positions, shape (b, P), or None if
        there is only one.
    """
    leaf = tap.leaf
    _check_values(values, tap)
    (by_position,) = torch.autograd.grad(
        values.sum(), leaf, create_graph=True, materialize_grads=True
    )
    delta = by_position.sum(1)
    weights = None
    if leaf.shape[1] > 1:
        weights = shares_in(by_position.detach(), tap.tolerance)
    try:
        rows = [gradient(delta[:, c].sum(), leaf).sum(1) for c in range(leaf.shape[2])]
    except RuntimeError as error:
        raise ValueError(
            f"losses= cannot be differentiated twice by the output of layer {tap.name!r} ({error}); "
            "write the loss with other operations, or use prunesampler.CrossEntropy or another loss "
            "that is known in closed form"
        ) from error
    hessian = torch.stack(rows, dim=1)
    hessian = (hessian + hessian.transpose(1, 2)) / 2
    if leaf.shape[1] > 1 and (
        weights is None
        or not curvature_lines_up(by_position, leaf, weights, hessian, tap.tolerance)
    ):
        raise ValueError(
            f"layer {tap.name!r} is applied at {leaf.shape[1]} positions of each sample, whose "
            "gradients do not line up (a loss per token, or an activation between the layer and its "
            f"pooling), so a sample's gradient is not rank one: {PER_TOKEN}; choose a layer behind "
            "the pooling with head=, or pass gradients="
        )
    kept = Derivatives(values.detach().to(leaf), delta.detach(), DenseHessian(hessian))
    return kept, weights


def _check_values(values: Tensor, tap: Tap) -> None:
    """Check that there is one loss per sample, and that it depends on that sample's outputs alone."""
    rows, _, width = tap.leaf.shape
    if isinstance(values, Tensor) and values.dim() == 1 and len(values) != rows:
        raise ValueError(
            f"layer {tap.name!r} got {rows} rows for {len(values)} samples (tokens, views or "
            "choices as rows, or a batch in another dimension), so a sample's gradient is not rank "
            "one; choose another with head=, or pass gradients="
        )
    check_unreduced(values, rows)
    if width > MAX_DENSE_OUTPUTS:
        raise ValueError(
            f"a loss without closed form needs {width} x {width} numbers per sample for the "
            f"{width} outputs of layer {tap.name!r}, above {MAX_DENSE_OUTPUTS} outputs; use "
            "one of prunesampler with a closed form, which takes a batch of any form with "
            "CrossEntropy(run=lambda model, batch: (logits, targets))"
        )
    if not values.requires_grad:
        raise ValueError(
            f"the losses do not depend on the output of layer {tap.name!r}, or were detached; "
            "return them as they are computed, or choose another layer with head="
        )
    if depends_on_others(values, tap.leaf, tap.tolerance):
        raise ValueError(
            f"a sample's loss depends on what layer {tap.name!r} returns for other samples (a "
            "contrastive loss, or batch statistics behind the layer), so it has no gradient of its "
            "own; choose another layer with head=, or pass gradients="
        )


def check_gradient(source: HeadGradients, model: nn.Module, batch: Any) -> None:
    """Compare a batch's gradients with those that autograd finds for the layer's weight.

    This finds anything that changes a weight on its way into the layer's output, even a normalisation
    that happens to have no effect at the moment.

    Args:
        source: Measures the gradients to check.
        model: The model in evaluation mode, on the batch's device.
        batch: A batch that the losses of ``source`` take.

    Raises:
        ValueError: If they differ.

    Examples:
        >>> batch = torch.randn(5, 8), torch.arange(5) % 3
        >>> check_gradient(HeadGradients("0"), nn.Sequential(nn.Linear(8, 3)), batch)
    """
    name, layer = find_layer(model, source.head)
    weight = layer._parameters["weight"]
    if weight is None or not weight.requires_grad:
        return
    measured = replace(source, keep=lambda every: every)(model, batch)
    with torch.enable_grad():
        values = source.losses(model, batch)
        (found,) = torch.autograd.grad(values.sum(), weight, materialize_grads=True)
    tokens = measured.tokens
    found = found.flatten(1).to(tokens.inputs)
    predicted = tokens.delta.T @ tokens.inputs[:, : found.shape[1]]
    tolerance = CHECKED if weight.element_size() > 2 else 2 * ROUNDING
    # Where all samples are easy, what autograd finds is mostly rounding.
    rounding = 1e-5 * float(tokens.inputs.norm(dim=1).sum())
    if (found - predicted).norm() > tolerance * found.norm() + rounding:
        raise ValueError(
            f"layer {name!r} ({type(layer).__name__}) has another gradient than its outputs tell: its "
            "weight is changed on the way, as by a normalisation, or used elsewhere too, so choose "
            "another with head=, or pass gradients=; or losses= holds a term in the weight itself, as "
            "a penalty: leave it out"
        )
