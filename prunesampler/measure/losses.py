"""Losses as functions of a linear layer's output: value, gradient and curvature per sample.

A loss here can be called like any other, ``losses(model, batch) -> (b,)``, and also knows its
derivatives in closed form. Any callable without closed forms works too: then the gradients module
differentiates it automatically.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesampler.influence.measurements import DiagonalHessian, OutputHessian, SoftmaxHessian
from prunesampler.measure.batches import model_output, run_batch, targets_of
from prunesampler.measure.heads import PER_TOKEN

PROBABILITY = 1e-2
"""How far a row of probabilities, in whatever precision, may be from summing to one."""


class Derivatives(NamedTuple):
    """Per-sample loss (n,), its gradient by the outputs (n, C), and its Hessian by them."""

    losses: Tensor
    delta: Tensor
    hessian: OutputHessian


@runtime_checkable
class ClosedFormLoss(Protocol):
    """A per-sample loss that knows its derivatives by the model's output."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """One unreduced loss per sample, shape (b,)."""

    def outputs_and_targets(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Run the model: its outputs (b, C) and the batch's targets."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,), differentiable."""

    def classes(self, targets: Tensor) -> Tensor | None:
        """Class of every sample, int64, shape (b,), or None where targets are no classes."""

    @property
    def lipschitz(self) -> float | None:
        """Largest norm that the gradient by the outputs can have, whatever the target, or None."""

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian of every sample, from outputs of shape (b, C)."""


@dataclass(frozen=True, kw_only=True)
class _OutputLoss:
    """Calling and running, the same for every closed form.

    Args:
        run: ``run(model, batch)`` returns the model's output, shape (b, C) or an object with
            ``.logits``, and the targets, for batches and models of any form. Default: the batch is
            ``(x, y)``, or a mapping with ``labels``.
    """

    run: Callable[[nn.Module, Any], tuple[Any, Tensor]] | None = None

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """One unreduced loss per sample, shape (b,)."""
        outputs, targets = self.outputs_and_targets(model, batch)
        return self.values(outputs, targets)

    def outputs_and_targets(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Run the model, by ``run`` or on a batch of the default form.

        Raises:
            TypeError: when ``run`` does not return outputs and targets.
        """
        if self.run is None:
            return run_batch(model, batch)
        returned = self.run(model, batch)
        if not isinstance(returned, (tuple, list)) or len(returned) != 2:
            raise TypeError(
                f"run= must return (logits, targets), got {type(returned).__name__}; return the "
                "model's output and the batch's targets, not a loss"
            )
        return model_output(returned[0]), targets_of(returned[1])

    def classes(self, targets: Tensor) -> Tensor | None:
        """None: these targets are no classes."""
        del targets
        return None

    @property
    def lipschitz(self) -> float | None:
        """None: this loss has gradients of any size."""
        return None

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,), differentiable."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class CrossEntropy(_OutputLoss):
    """Softmax cross-entropy, as ``torch.nn.CrossEntropyLoss`` with ``reduction="none"``.

    Targets are class indices, shape (b,), or class probabilities, shape (b, C), one-hot or not. The
    objective is the mean of these losses over samples; torch's own mean divides by the sum of class
    weights instead.

    Args:
        weight: class weights, shape (C,).
        label_smoothing: share of the target spread over all classes.
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def classes(self, targets: Tensor) -> Tensor | None:
        """The targets, where they are class indices or one-hot."""
        if targets.dim() != 2:
            return targets.long() if targets.dim() == 1 else None
        sure = bool(((targets == 1).sum(1) == 1).all() and ((targets != 0).sum(1) == 1).all())
        return targets.argmax(1) if sure else None

    @property
    def lipschitz(self) -> float:
        """``||p - t|| <= sqrt(2)`` for probabilities p and t, times the largest weight."""
        return 2**0.5 * (1.0 if self.weight is None else float(self.weight.max()))

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,)."""
        return self._values(outputs, _checked_classes(outputs, targets))

    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(outputs)
        return F.cross_entropy(
            outputs, targets, weight, reduction="none", label_smoothing=self.label_smoothing
        )

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian; see :class:`ClosedFormLoss`.

        The gradient of the heaviest class is minus the sum of the others: ``p - 1`` would cancel
        and make easy samples exactly zero.

        Raises:
            ValueError: when a label is not a class of the output.
        """
        targets = _checked_classes(outputs, targets)
        values = self._values(outputs, targets)
        classes = outputs.shape[1]
        target = F.one_hot(targets, classes) if targets.dim() == 1 else targets
        target = target.to(outputs)
        target = target * (1 - self.label_smoothing) + self.label_smoothing / classes
        if self.weight is not None:
            target = target * self.weight.to(outputs)
        mass = target.sum(1)
        probabilities = outputs.softmax(1)
        delta = mass[:, None] * probabilities - target
        heaviest = target.argmax(1, keepdim=True)
        delta.scatter_(1, heaviest, 0.0)
        delta.scatter_(1, heaviest, -delta.sum(1, keepdim=True))
        return Derivatives(values, delta, SoftmaxHessian(probabilities, mass))


@dataclass(frozen=True, kw_only=True)
class BinaryCrossEntropy(_OutputLoss):
    """Binary cross-entropy with logits, the mean over the C outputs of a sample.

    Targets have the outputs' shape, or (b,) when there is one output.

    Args:
        pos_weight: weight of the positive answers, shape (C,).
    """

    pos_weight: Tensor | None = None

    def classes(self, targets: Tensor) -> Tensor | None:
        """The answers, where there is one per sample."""
        return (targets.flatten() > 0.5).long() if targets.numel() == len(targets) else None

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,)."""
        outputs, targets = _match(outputs, targets)
        if ((targets < 0) | (targets > 1)).any():
            raise ValueError(
                f"binary cross-entropy takes targets from 0 to 1, got {float(targets.min()):.4g} to "
                f"{float(targets.max()):.4g}; for class labels use CrossEntropy(), for regression "
                "SquaredError()"
            )
        weight = None if self.pos_weight is None else self.pos_weight.to(outputs)
        return F.binary_cross_entropy_with_logits(
            outputs, targets, pos_weight=weight, reduction="none"
        ).mean(1)

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian; see :class:`ClosedFormLoss`."""
        outputs, target = _match(outputs, targets)
        positive = target if self.pos_weight is None else target * self.pos_weight.to(outputs)
        up, down = outputs.sigmoid(), (-outputs).sigmoid()
        share = 1.0 / outputs.shape[1]
        delta = share * ((1 - target) * up - positive * down)
        hessian = DiagonalHessian(share * (positive + 1 - target) * up * down)
        return Derivatives(self.values(outputs, target), delta, hessian)


@dataclass(frozen=True, kw_only=True)
class SquaredError(_OutputLoss):
    """Squared error, the mean over the C outputs of a sample.

    Targets have the outputs' shape, or (b,) when there is one output.
    """

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,)."""
        outputs, targets = _match(outputs, targets)
        return (outputs - targets).square().mean(1)

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian; see :class:`ClosedFormLoss`."""
        outputs, target = _match(outputs, targets)
        scale = 2.0 / outputs.shape[1]
        hessian = DiagonalHessian(torch.full_like(outputs, scale))
        return Derivatives(self.values(outputs, target), scale * (outputs - target), hessian)


def _checked_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets as int64 classes (b,) or probabilities (b, C)."""
    if outputs.dim() > 2:
        raise ValueError(
            "cross-entropy takes outputs of shape (batch, classes), got one output per token or "
            f"position, {tuple(outputs.shape)}: {PER_TOKEN}; prune a model with one output per sample"
        )
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        raise ValueError(
            "cross-entropy takes outputs of shape (batch, classes) with at least 2 classes, got "
            f"{tuple(outputs.shape)}; pass losses=BinaryCrossEntropy() for yes-or-no answers, "
            "SquaredError() for regression"
        )
    # One row of logits may sum to 1 by chance.
    if (
        len(outputs) > 1
        and (outputs >= 0).all()
        and torch.allclose(outputs.sum(1), outputs.new_ones(()), atol=1e-3)
    ):
        raise ValueError(
            "the model returns probabilities (every row sums to 1), but cross-entropy takes logits; "
            "leave out the softmax, or pass losses= with your own loss"
        )
    classes = outputs.shape[1]
    if targets.is_floating_point() and targets.shape == outputs.shape:
        return _checked_probabilities(targets)
    if targets.is_floating_point() or targets.dim() != 1 or len(targets) != len(outputs):
        raise ValueError(
            f"targets must be class labels, integers of shape ({len(outputs)},), or probabilities of "
            f"shape {tuple(outputs.shape)}, got {targets.dtype} of shape {tuple(targets.shape)}; turn "
            "one-hot rows into floats, for regression pass losses=SquaredError(), for yes-or-no answers "
            "BinaryCrossEntropy()"
        )
    wrong = (targets < 0) | (targets >= classes)
    if wrong.any():
        values = sorted(set(targets[wrong].tolist()))[:5]
        raise ValueError(
            f"labels {values} are out of range: the layer has {classes} outputs, so labels are "
            f"0 to {classes - 1}; correct the labels or the layer"
        )
    return targets.long()


def _checked_probabilities(targets: Tensor) -> Tensor:
    """Targets of shape (b, C), if every row is a distribution."""
    sums = targets.double().sum(1)
    wrong = ((sums - 1).abs() > PROBABILITY) | (targets < -PROBABILITY).any(1)
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(
            "floating-point targets of the outputs' shape are class probabilities for cross-entropy, "
            f"but row {first} sums to {float(sums[first]):.4g} with a smallest value of "
            f"{float(targets[first].min()):.4g}; for several yes-or-no answers pass "
            "losses=BinaryCrossEntropy(), for regression SquaredError()"
        )
    return targets


def _match(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets both as (b, C)."""
    flat = outputs.reshape(len(outputs), -1)
    if targets.numel() != flat.numel():
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit outputs of shape "
            f"{tuple(outputs.shape)}; give one target per output"
        )
    return flat, targets.reshape(flat.shape).to(flat)
