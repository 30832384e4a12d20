"""Checks of the targets that the losses accept."""

from __future__ import annotations

import torch
from torch import Tensor

from prunesampler.measure.heads import PER_TOKEN

PROBABILITY = 1e-2
"""Largest distance from one of the sum of a row of probabilities, in any precision."""
IGNORED = -100
"""The label that torch's cross-entropy leaves out by default, its ``ignore_index``."""


def checked_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Targets of the cross-entropy: int64 classes (b,), or probabilities (b, C).

    Raises:
        ValueError: If outputs or targets have another form, or a class is out of range.

    Examples:
        >>> checked_classes(torch.randn(2, 3), torch.tensor([0, 3]))
        Traceback (most recent call last):
        ValueError: labels [3] are out of range: the layer has 3 outputs, so labels are 0 to 2; ...
    """
    if outputs.dim() > 2:
        raise ValueError(
            "cross-entropy takes outputs of shape (batch, classes), got one output per token or "
            f"position, {tuple(outputs.shape)}: {PER_TOKEN}, or prune a model with one output per sample"
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
        ignored = int((targets.long() == IGNORED).sum())
        way_out = (
            f"{ignored} of these {len(targets)} samples have {IGNORED}, torch's ignore_index: they have "
            "no loss, so nothing is to be had from them, and you leave them out of the dataset, as "
            f"Subset(dataset, [i for i, y in enumerate(labels) if y != {IGNORED}])"
        )
        raise ValueError(
            f"labels {values} are out of range: the layer has {classes} outputs, so labels are "
            f"0 to {classes - 1}; {way_out if ignored else 'correct the labels or the layer'}"
        )
    return targets.long()


def _checked_probabilities(targets: Tensor) -> Tensor:
    """Targets of shape (b, C), of which every row must be a distribution."""
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


def check_class_weights(weight: Tensor) -> None:
    """Check that class weights are finite numbers of at least zero.

    Raises:
        TypeError: If they are not a tensor.
        ValueError: If they have another shape, or one is negative or not finite.

    Examples:
        >>> check_class_weights(torch.tensor([1.0, -2.0]))
        Traceback (most recent call last):
        ValueError: the weight of class 1 is -2: the loss would not be convex; give weight= numbers ...
    """
    way_out = "one for each class, as weight=torch.tensor([1.0, 2.0])"
    if not isinstance(weight, Tensor):
        raise TypeError(f"class weights are a tensor, got {weight!r}; give {way_out}")
    if weight.dim() != 1:
        raise ValueError(
            f"class weights are a tensor of shape (classes,), got {tuple(weight.shape)}; give {way_out}"
        )
    wrong = (~(weight.isfinite() & (weight >= 0))).nonzero().flatten()
    if len(wrong):
        value = float(weight[wrong[0]])
        reason = "convex" if value < 0 else "finite"
        raise ValueError(
            f"the weight of class {int(wrong[0])} is {value:.4g}: the loss would not be {reason}; give "
            "weight= numbers of at least 0, and 0 for a class that does not count"
        )


def check_weight_per_class(weight: Tensor, outputs: Tensor) -> None:
    """Check that there is one class weight for each output of the model, shape (b, C).

    Raises:
        ValueError: If there is not.

    Examples:
        >>> check_weight_per_class(torch.ones(2), torch.randn(5, 3))
        Traceback (most recent call last):
        ValueError: there are 2 class weights, but the layer has 3 outputs; give weight= one number ...
    """
    if len(weight) != outputs.shape[1]:
        raise ValueError(
            f"there are {len(weight)} class weights, but the layer has {outputs.shape[1]} outputs; give "
            "weight= one number for each output, 1.0 where a class counts like the others"
        )


def matched(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and targets, both of shape (b, C) and of the outputs' dtype.

    Raises:
        ValueError: If there is not one target per output.

    Examples:
        >>> matched(torch.zeros(2, 1), torch.tensor([0, 1]))[1]
        tensor([[0.],
                [1.]])
    """
    flat = outputs.reshape(len(outputs), -1)
    if targets.numel() != flat.numel():
        raise ValueError(
            f"targets of shape {tuple(targets.shape)} do not fit outputs of shape "
            f"{tuple(outputs.shape)}; give one target per output"
        )
    return flat, targets.reshape(flat.shape).to(flat)
