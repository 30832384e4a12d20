"""Per-sample gradients of a linear layer, from one forward pass.

For a linear layer used once per sample, ``z = W a + b``, the gradient of sample i's loss by (W, b) is
``delta_i ⊗ [a_i, 1]`` with ``delta_i`` the gradient by z. So a hook on the layer is all it takes: no
backward pass runs through the rest of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesampler.losses import ClosedFormLoss, CrossEntropy, Derivatives
from prunesampler.samples import DenseHessian, SampleGradients

ROUNDING = 0.05
"""Largest relative difference between a layer's output under autocast and in full precision."""
MAX_DENSE_OUTPUTS = 128
"""Widest layer whose per-sample Hessians, C * C numbers each, are taken by automatic differentiation."""

Losses = Callable[[nn.Module, Any], Tensor]
"""``losses(model, batch)`` returns one unreduced loss per sample, shape (b,)."""


class GradientSource(Protocol):
    """Measures the samples of one batch."""

    def __call__(self, model: nn.Module, batch: Any) -> SampleGradients:
        """Gradients of every sample in the batch, in its order."""


@dataclass
class _Tap:
    """A hook that keeps a layer's input, and makes its output a leaf from which autograd runs on."""

    name: str
    inputs: Tensor | None = None
    outputs: Tensor | None = None

    def __call__(
        self, layer: nn.Linear, args: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> Tensor:
        if self.inputs is not None:
            raise ValueError(
                f"layer {self.name!r} runs more than once in a forward pass, so its gradient is not "
                "rank one; choose another with head=, or pass gradients="
            )
        inputs = (args[0] if args else named["input"]).detach()
        if inputs.dim() != 2:
            raise ValueError(
                f"layer {self.name!r} gets inputs of shape {tuple(inputs.shape)}, not (batch, "
                "features), so its gradient is not rank one; choose a layer behind the pooling "
                "with head=, or pass gradients="
            )
        # The layer runs again in full precision: under autocast its output would be rounded to
        # eight bits, and gradients of easy samples are differences of such numbers.
        with torch.autocast(inputs.device.type, enabled=False):
            wide = torch.promote_types(inputs.dtype, torch.float32)
            bias = None if layer.bias is None else layer.bias.detach().to(wide)
            self.inputs = inputs.to(wide)
            outputs = F.linear(self.inputs, layer.weight.detach().to(wide), bias)
            if (output.detach().to(wide) - outputs).norm() > ROUNDING * outputs.norm():
                raise ValueError(
                    f"layer {self.name!r} does not return its weight times its input plus its bias "
                    "(another hook or a wrapper changes it), so its gradient has another form; "
                    "choose another with head=, or pass gradients="
                )
        self.outputs = outputs.requires_grad_()
        torch.set_grad_enabled(True)  # ends with the no_grad around the whole pass
        return self.outputs

    def saw(self, outputs: Tensor) -> bool:
        """Whether the model's output is the layer's output and nothing more."""
        if self.outputs is None or outputs.numel() != self.outputs.numel():
            return False
        return torch.equal(outputs.reshape(self.outputs.shape).to(self.outputs), self.outputs)


@contextmanager
def _attached(layer: nn.Linear, tap: _Tap) -> Iterator[_Tap]:
    handle = layer.register_forward_hook(tap, with_kwargs=True)
    try:
        with torch.no_grad():
            yield tap
    finally:
        handle.remove()


@dataclass(frozen=True)
class HeadGradients:
    """Gradients of the losses by one ``nn.Linear``.

    Args:
        head: the layer, a module of the model or its name.
        losses: per-sample loss. The closed forms of ``prunesampler.losses`` are used as such when
            the layer's output is the model's output; everything else, any function ``(model, batch)
            -> (b,)``, is differentiated automatically through the layer's output.
    """

    head: nn.Linear | str
    losses: Losses = field(default_factory=CrossEntropy)

    def __call__(self, model: nn.Module, batch: Any) -> SampleGradients:
        """Measure one batch.

        Args:
            model: in evaluation mode, on the batch's device.
            batch: whatever ``losses`` takes.

        Raises:
            ValueError: when the layer does not run once per sample on inputs of shape (b, features),
                or the losses are not one number per sample.
        """
        name, layer = find_layer(model, self.head)
        tap = _Tap(name)
        labels: Tensor | None = None
        with _attached(layer, tap):
            if not isinstance(self.losses, ClosedFormLoss):
                derivatives = _differentiate(self.losses(model, batch), tap)
            else:
                outputs, targets = self.losses.outputs_and_targets(model, batch)
                labels = self.losses.classes(targets)
                if tap.saw(outputs):
                    assert tap.outputs is not None
                    derivatives = self.losses.derivatives(tap.outputs.detach(), targets)
                else:
                    derivatives = _differentiate(self.losses.values(outputs, targets), tap)
        assert tap.inputs is not None
        ones = tap.inputs.new_ones(len(tap.inputs), 1)
        inputs = tap.inputs if layer.bias is None else torch.cat([tap.inputs, ones], dim=1)
        return SampleGradients(
            derivatives.delta, inputs, derivatives.hessian, derivatives.losses.detach(), labels
        )


def _differentiate(values: Tensor, tap: _Tap) -> Derivatives:
    """Gradient and Hessian of the losses by the layer's output, by automatic differentiation."""
    outputs = tap.outputs
    if outputs is None:
        raise ValueError(
            f"layer {tap.name!r} did not run in the forward pass; choose another with head="
        )
    size, width = outputs.shape
    check_unreduced(values, size)
    if width > MAX_DENSE_OUTPUTS:
        raise ValueError(
            f"a loss without closed form needs {width} x {width} numbers per sample for the "
            f"{width} outputs of layer {tap.name!r}, above {MAX_DENSE_OUTPUTS} outputs; use a "
            "closed form of prunesampler.losses"
        )
    if not values.requires_grad:
        raise ValueError(
            f"the losses do not depend on the output of layer {tap.name!r}, or were detached; "
            "return them as they are computed, or choose another layer with head="
        )
    (delta,) = torch.autograd.grad(values.sum(), outputs, create_graph=True, materialize_grads=True)
    rows = [_gradient(delta[:, c].sum(), outputs) for c in range(width)]
    hessian = torch.stack(rows, dim=1)
    hessian = (hessian + hessian.transpose(1, 2)) / 2
    return Derivatives(values.detach().to(outputs), delta.detach(), DenseHessian(hessian))


def _gradient(value: Tensor, by: Tensor) -> Tensor:
    if not value.requires_grad:  # the loss is linear in the output
        return torch.zeros_like(by)
    return torch.autograd.grad(value, by, retain_graph=True, materialize_grads=True)[0].detach()


def check_unreduced(values: Tensor, size: int) -> None:
    """Check that there is one loss per sample.

    Raises:
        ValueError: when there is not.
    """
    if not isinstance(values, Tensor) or values.shape != (size,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(
            f"losses must return one loss per sample, shape ({size},), got {shape}: the loss is "
            'already reduced or has extra dimensions; use reduction="none" and average over '
            "everything but the samples"
        )


def find_layer(model: nn.Module, head: nn.Linear | str) -> tuple[str, nn.Linear]:
    """Name and module of a layer given by either.

    Raises:
        ValueError: when the model has no such layer.
        TypeError: when it is not an ``nn.Linear``.
    """
    modules = dict(model.named_modules())
    names = [n for n, m in modules.items() if (n == head if isinstance(head, str) else m is head)]
    if not names:
        linear = [n for n, m in modules.items() if isinstance(m, nn.Linear)]
        raise ValueError(
            f"the model has no layer {head!r} to score; its linear layers are {linear or 'none'}"
        )
    layer = modules[names[0]]
    if not isinstance(layer, nn.Linear) or type(layer).forward is not nn.Linear.forward:
        raise TypeError(
            f"head {names[0]!r} is {type(layer).__name__}, which does not compute what nn.Linear "
            "does: only a linear layer's influence has the closed form used here; choose one with "
            "head=, or pass gradients="
        )
    return names[0], layer


@dataclass
class _Cut:
    """A hook that makes a layer's output a leaf, so that autograd stops there."""

    leaves: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        del layer, args
        self.leaves.append(output.detach().requires_grad_())
        return self.leaves[-1]


def find_head(model: nn.Module, batch: Any, losses: Losses) -> str:
    """Name of the last ``nn.Linear`` that runs: the one with no other between it and the loss.

    Every linear layer's output is cut from the graph; only those that the loss still depends on
    are last.

    Raises:
        ValueError: when there is none, or several that cannot be told apart.
    """
    cuts = {n: _Cut() for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(cut) for name, cut in cuts.items()]
    try:
        with torch.enable_grad():
            values = losses(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not isinstance(values, Tensor):
        check_unreduced(values, 1)
    ran = {name: cut.leaves for name, cut in cuts.items() if cut.leaves}
    leaves = [leaf for found in ran.values() for leaf in found]
    if not leaves or not values.requires_grad:
        raise ValueError(
            f"no nn.Linear leads to the loss of {type(model).__name__} (linear layers: "
            f"{list(cuts) or 'none'}); choose the layer with head=, or pass gradients="
        )
    gradients = torch.autograd.grad(values.sum(), leaves, allow_unused=True)
    reached = {id(leaf) for leaf, g in zip(leaves, gradients, strict=True) if g is not None}
    last = [name for name, found in ran.items() if any(id(leaf) in reached for leaf in found)]
    if len(last) != 1:
        raise ValueError(
            f"the loss depends on {len(last)} last linear layers that cannot be told apart: {last}; "
            "choose one with head="
        )
    return str(last[0])
