"""Losses as functions of a linear layer's output: value, gradient and curvature per sample.

These losses can be called like any other, ``losses(model, batch) -> (b,)``, and also know their
derivatives in closed form. Other callables work too: ``HeadGradients`` differentiates them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesampler.influence.hessians import DiagonalHessian, OutputHessian, SoftmaxHessian
from prunesampler.measure.batches import model_output, run_batch, targets_of
from prunesampler.measure.targets import (
    check_class_weights,
    check_weight_per_class,
    checked_classes,
    matched,
)


class Derivatives(NamedTuple):
    """Loss of every sample (n,), and its gradient (n, C) and Hessian in the outputs.

    Examples:
        >>> found = SquaredError().derivatives(torch.tensor([[3.0]]), torch.tensor([1.0]))
        >>> found.losses, found.delta, found.hessian.total()
        (tensor([4.]), tensor([[4.]]), tensor([[2.]], dtype=torch.float64))
    """

    losses: Tensor
    delta: Tensor
    hessian: OutputHessian


@runtime_checkable
class ClosedFormLoss(Protocol):
    """A per-sample loss that knows its derivatives with respect to the model's output."""

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """One unreduced loss per sample, shape (b,)."""

    def outputs_and_targets(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """Outputs of the model, shape (b, C), and the batch's targets."""

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,), differentiable."""

    def classes(self, targets: Tensor) -> Tensor | None:
        """Class of every sample, int64, shape (b,), or None if the targets are not classes."""

    @property
    def lipschitz(self) -> float | None:
        """Largest norm of the gradient in the outputs for any target, or None if unbounded."""

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian of every sample, from outputs of shape (b, C)."""


@dataclass(frozen=True, kw_only=True)
class _OutputLoss:
    """What all closed forms share: how the model is run on a batch.

    Args:
        run: ``run(model, batch)`` returns the model's output, shape (b, C) or an object with
            ``.logits``, and the targets, for batches and models of any form. By default a batch is
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
            TypeError: If ``run`` does not return outputs and targets.
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
        """None: these targets are not classes."""
        del targets
        return None

    @property
    def lipschitz(self) -> float | None:
        """None: the gradients of this loss have no bound."""
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
        weight: Class weights, shape (C,), each at least zero.
        label_smoothing: Share of the target that is spread over all classes.

    Raises:
        TypeError: If the weights are not a tensor.
        ValueError: If a weight is negative or not finite.

    Examples:
        >>> losses = CrossEntropy(label_smoothing=0.1)
        >>> losses(nn.Linear(4, 3), (torch.randn(5, 4), torch.arange(5) % 3)).shape
        torch.Size([5])
    """

    weight: Tensor | None = None
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if self.weight is not None:
            check_class_weights(self.weight)

    def classes(self, targets: Tensor) -> Tensor | None:
        """The targets, if they are class indices or one-hot."""
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
        return self._values(outputs, self._checked(outputs, targets))

    def _checked(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Targets that fit the outputs, as class weights must too."""
        targets = checked_classes(outputs, targets)
        if self.weight is not None:
            check_weight_per_class(self.weight, outputs)
        return targets

    def _values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(outputs)
        return F.cross_entropy(
            outputs, targets, weight, reduction="none", label_smoothing=self.label_smoothing
        )

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian; see :class:`ClosedFormLoss`.

        The gradient of the heaviest class is minus the sum of the others: ``p - 1`` would cancel
        and make the gradients of easy samples exactly zero.

        Raises:
            ValueError: If a label is not a class of the output, or there is not one weight per class.
        """
        targets = self._checked(outputs, targets)
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

    Targets have the outputs' shape, or (b,) if there is one output.

    Args:
        pos_weight: Weight of the positive answers, shape (C,).

    Examples:
        >>> losses = BinaryCrossEntropy()
        >>> losses.values(torch.zeros(1), torch.ones(1))
        tensor([0.6931])
    """

    pos_weight: Tensor | None = None

    def classes(self, targets: Tensor) -> Tensor | None:
        """The answers, if there is one per sample."""
        return (targets.flatten() > 0.5).long() if targets.numel() == len(targets) else None

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,)."""
        outputs, targets = matched(outputs, targets)
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
        outputs, target = matched(outputs, targets)
        positive = target if self.pos_weight is None else target * self.pos_weight.to(outputs)
        up, down = outputs.sigmoid(), (-outputs).sigmoid()
        share = 1.0 / outputs.shape[1]
        delta = share * ((1 - target) * up - positive * down)
        hessian = DiagonalHessian(share * (positive + 1 - target) * up * down)
        return Derivatives(self.values(outputs, target), delta, hessian)


@dataclass(frozen=True, kw_only=True)
class SquaredError(_OutputLoss):
    """Squared error, the mean over the C outputs of a sample.

    Targets have the outputs' shape, or (b,) if there is one output.

    Examples:
        >>> SquaredError().values(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]))
        tensor([2.])
    """

    def values(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of every sample, shape (b,)."""
        outputs, targets = matched(outputs, targets)
        return (outputs - targets).square().mean(1)

    def derivatives(self, outputs: Tensor, targets: Tensor) -> Derivatives:
        """Loss, gradient and Hessian; see :class:`ClosedFormLoss`."""
        outputs, target = matched(outputs, targets)
        scale = 2.0 / outputs.shape[1]
        hessian = DiagonalHessian(torch.full_like(outputs, scale))
        return Derivatives(self.values(outputs, target), scale * (outputs - target), hessian)
