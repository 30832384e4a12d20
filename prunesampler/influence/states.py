"""Measurements as plain tensors for files and checkpoints, and back again, with all that can be checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.checks import checked_labels, whole_number
from prunesampler.influence.hessians import (
    DenseHessian,
    DiagonalHessian,
    OutputHessian,
    SoftmaxHessian,
)
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.influence.top import TopMeasurements
from prunesampler.influence.top_rows import TopHessian

HESSIANS: dict[str, type[OutputHessian]] = {
    kind.__name__: kind for kind in (SoftmaxHessian, DiagonalHessian, DenseHessian, TopHessian)
}
DAMAGED = "a damaged file, or not one of prunesampler"
MOST_OUTPUTS = 2**24
"""Outputs of a layer, of which sums over all are made, however few are kept of each sample."""


def measurement_state(measured: Measured) -> dict[str, Any]:
    """Measurements as plain tensors and numbers, which `read_measurements` reads.

    Examples:
        >>> from prunesampler import CrossEntropy
        >>> losses, delta, hessian = CrossEntropy().derivatives(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        >>> measured = Measurements(delta, torch.ones(3, 1), hessian, losses)
        >>> len(read_measurements(measurement_state(measured), num_samples=3))
        3
    """
    held = measured.tokens
    sequences = {}
    if isinstance(measured, Sequences):
        sequences = {"counts": measured.counts, "scale": measured.scale}
    return {
        **sequences,
        "delta": held.delta,
        "inputs": held.inputs,
        "losses": held.losses,
        "labels": held.labels,
        "hessian": type(held.hessian).__name__,
        "hessian_tensors": dict(held.hessian.tensors),
        "outputs": held.hessian.size()[0],
    }


def class_labels(labels: Tensor | None, num_samples: int) -> Tensor | None:
    """Labels as classes from 0 on, int64, shape (n,); renumbered if most numbers are unused.

    Raises:
        ValueError: If there is not one label of at least 0 per sample, or there is only one class.

    Examples:
        >>> class_labels(torch.tensor([0, 2, 1, 2]), 4).tolist()
        [0, 2, 1, 2]
        >>> class_labels(torch.tensor([0, 9_000_000]), 2).tolist()
        [0, 1]
    """
    if labels is None:
        return None
    labels = checked_labels(labels, num_samples)
    classes, dense = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    if len(classes) == 1:
        raise ValueError(
            f"all {num_samples} samples have label {int(classes[0])}: with one class there is "
            "nothing to tell apart; check the labels"
        )
    return dense if int(classes[-1]) > 2 * num_samples else labels


def read_name(state: Mapping[str, Any], key: str) -> str | None:
    """A text in a state of scores; None in states of older releases.

    Raises:
        ValueError: If it is something else.

    Examples:
        >>> read_name({"layer": "fc"}, "layer"), read_name({}, "layer")
        ('fc', None)
    """
    found = state.get(key)
    if found is not None and not isinstance(found, str):
        raise ValueError(f"the {key} of the measurements must be a text, got {found!r}: {DAMAGED}")
    return found


def read_constant(state: Mapping[str, Any]) -> float | None:
    """Lipschitz constant of the loss in a state of scores, or None if it has none.

    Raises:
        ValueError: If it is no positive number.

    Examples:
        >>> read_constant({"lipschitz": 1.5}), read_constant({})
        (1.5, None)
    """
    found = state.get("lipschitz")
    if found is None:
        return None
    if type(found) not in (int, float) or not 0 < found < math.inf:
        raise ValueError(f"the loss's constant must be a positive number, got {found!r}: {DAMAGED}")
    return float(found)


def read_measurements(state: Mapping[str, Any], num_samples: int) -> Measured:
    """Measurements from :func:`measurement_state`; all that compiled loops rely on is checked.

    Raises:
        ValueError: If they are incomplete or damaged, or of another number of samples.

    Examples:
        >>> one = torch.ones(3, 1)
        >>> state = {"delta": one, "inputs": one, "losses": one[:, 0], "labels": None}
        >>> state |= {"hessian": "DiagonalHessian", "hessian_tensors": {"values": one}}
        >>> len(read_measurements(state, num_samples=3))
        3
    """
    try:
        counts, size = state.get("counts"), num_samples
        if counts is not None:
            check_counts(counts, num_samples)
            size = int(counts.sum())  # of what was measured
        hessian = _hessian(state, size)
        top = isinstance(hessian, TopHessian)
        kind = (torch.float32, torch.float16) if top else (None, None)
        delta = _tensor(state, "delta", (size, _width(hessian)), kind[0])
        inputs = _tensor(state, "inputs", (size, None), kind[1])
        losses = _tensor(state, "losses", (size,))
        labels, scale = _labels(state, hessian, size), state.get("scale")
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"not the measurements of a pruner: {error!r}") from error
    made = TopMeasurements if top else Measurements
    held = made(delta, inputs, hessian, losses, labels)  # type: ignore[arg-type]
    if counts is None:
        return held
    if not isinstance(scale, float) or not 0 < scale < math.inf:
        raise ValueError(
            f"the measurements' scale must be a positive number, got {scale!r}: {DAMAGED}"
        )
    return Sequences(held, counts, scale)


def check_counts(counts: Any, num_samples: int) -> None:
    """Check the number of tokens of each sample.

    Raises:
        ValueError: If they are not whole numbers, one per sample.

    Examples:
        >>> check_counts(torch.tensor([3, 0]), num_samples=2)
    """
    whole = isinstance(counts, Tensor) and counts.dtype == torch.int64
    if not whole or counts.shape != (num_samples,) or bool((counts < 0).any()):
        raise ValueError(
            f"the measurements are not of the {num_samples} sequences of this dataset; resume with the "
            "dataset of the checkpoint"
        )


def _tensor(
    state: Mapping[str, Any],
    name: str,
    shape: tuple[int | None, ...],
    kind: torch.dtype | None = None,
) -> Tensor:
    """A tensor of numbers that are finite.

    Args:
        state: Tensors by name.
        name: Name of the tensor.
        shape: Sizes, or None where any will do.
        kind: Precision, or None for any.

    Raises:
        ValueError: If it is none, or of other sizes or precision.
    """
    found = state[name]
    if not isinstance(found, Tensor):
        raise ValueError(
            f"the measurements' {name} are no tensor but {type(found).__name__}: {DAMAGED}"
        )
    if found.shape[:1] != shape[:1]:
        raise ValueError(
            f"the measurements are not of the {shape[0]} samples of this dataset; resume with the dataset of "
            "the checkpoint"
        )
    fits = found.dim() == len(shape) and all(
        b in (None, a) for a, b in zip(found.shape, shape, strict=True)
    )
    right = found.is_floating_point() if kind is None else found.dtype == kind
    if not fits or not right or 0 in found.shape[1:]:
        raise ValueError(
            f"the measurements' {name} are {found.dtype} of shape {tuple(found.shape)}, which does not fit: {DAMAGED}"
        )
    if not bool(torch.isfinite(found).all()):
        raise ValueError(f"the measurements hold {name} that are not finite: {DAMAGED}")
    return found


def _hessian(state: Mapping[str, Any], size: int) -> OutputHessian:
    """Second derivatives of this number of losses.

    Raises:
        ValueError: If they are damaged.
    """
    kind, held = HESSIANS[state["hessian"]], dict(state["hessian_tensors"])
    if kind is DiagonalHessian:
        return DiagonalHessian(_tensor(held, "values", (size, None)))
    if kind is DenseHessian:
        values = _tensor(held, "values", (size, None, None))
        if values.shape[1] != values.shape[2] or not torch.allclose(
            values, values.mT, rtol=1e-3, atol=1e-3 * float(values.abs().max())
        ):
            raise ValueError(f"the measurements' second derivatives are not symmetric: {DAMAGED}")
        return DenseHessian(values)
    single = torch.float32 if kind is TopHessian else None
    mass = _tensor(held, "mass", (size,), single)
    p = _tensor(held, "probabilities", (size, None), single)
    if bool((mass < 0).any()) or bool((p < 0).any()) or bool(((p.sum(1) - 1).abs() > 0.05).any()):
        raise ValueError(
            f"the measurements' probabilities do not sum to one, or are below zero: {DAMAGED}"
        )
    if kind is SoftmaxHessian:
        return SoftmaxHessian(p, mass)
    return _top(held, p, mass, whole_number("outputs", state["outputs"]))


def _top(held: Mapping[str, Any], p: Tensor, mass: Tensor, width: int) -> TopHessian:
    """Second derivatives by the outputs that are kept.

    Raises:
        ValueError: If an output that was kept does not exist.
    """
    outputs, share = held["outputs"], _tensor(held, "held", (len(p),), torch.float32)
    if not isinstance(outputs, Tensor) or outputs.dtype != torch.int32 or outputs.shape != p.shape:
        raise ValueError("the measurements' kept outputs do not fit together")
    if len(outputs) and not 0 <= int(outputs.min()) <= int(outputs.max()) < width:
        raise ValueError(f"the measurements keep outputs beyond the layer's {width}")
    ordered = outputs.sort(1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()) or bool((share < 0).any()):
        raise ValueError(
            f"the measurements keep an output of a sample twice, or a share below zero: {DAMAGED}"
        )
    if width > MOST_OUTPUTS:
        raise ValueError(
            f"the measurements are of {width} outputs, above {MOST_OUTPUTS:,}: {DAMAGED}"
        )
    return TopHessian(outputs, p, mass, share, width)


def _labels(state: Mapping[str, Any], hessian: OutputHessian, size: int) -> Tensor | None:
    """Class of every sample, or None.

    Raises:
        ValueError: If there is not one for each, or it is beyond the layer's outputs.
    """
    labels: Tensor | None = state["labels"]
    if labels is None:
        return None
    if labels.dtype != torch.int64 or labels.shape != (size,):
        raise ValueError(f"the measurements' labels are not {size} whole numbers: {DAMAGED}")
    classes = hessian.size()[0] if isinstance(hessian, (SoftmaxHessian, TopHessian)) else None
    if classes and size and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"the measurements' labels run from {int(labels.min())} to {int(labels.max())}, beyond the layer's "
            f"{classes} outputs: {DAMAGED}"
        )
    return labels


def _width(hessian: OutputHessian) -> int:
    """Number of gradients with respect to outputs that there must be of each sample."""
    return hessian.outputs.shape[1] if isinstance(hessian, TopHessian) else hessian.size()[0]
