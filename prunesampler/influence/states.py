"""Measurements as plain tensors for files and checkpoints, and back again, with all that can be checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.checks import checked_labels
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


def measurement_state(measured: Measured) -> dict[str, Any]:
    """Measurements as plain tensors and numbers, which `read_measurements` reads.

    Example:
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

    Example:
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


def read_layer(state: Mapping[str, Any]) -> str | None:
    """Name of the measured layer in a state of scores; None in states of older releases.

    Raises:
        ValueError: If it is not a string.

    Example:
        >>> read_layer({"layer": "fc"}), read_layer({})
        ('fc', None)
    """
    layer = state.get("layer")
    if layer is not None and not isinstance(layer, str):
        raise ValueError(f"the layer of the measurements must be a name, got {layer!r}")
    return layer


def read_measurements(state: Mapping[str, Any], num_samples: int) -> Measured:
    """Measurements from :func:`measurement_state`.

    Raises:
        ValueError: If they are incomplete or damaged, or of another number of samples.

    Example:
        >>> one = torch.ones(3, 1)
        >>> state = {"delta": one, "inputs": one, "losses": one[:, 0], "labels": None}
        >>> state |= {"hessian": "DiagonalHessian", "hessian_tensors": {"values": one}}
        >>> len(read_measurements(state, num_samples=3))
        3
    """
    try:
        measurements, counts = _measurements(state), state.get("counts")
        if counts is not None:
            check_counts(counts, num_samples)
            num_samples = int(counts.sum())  # of what was measured
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the measurements of a pruner: {error!r}") from error
    tensors = [
        measurements.delta,
        measurements.inputs,
        measurements.losses,
        *measurements.hessian.tensors.values(),
    ]
    if not all(isinstance(t, Tensor) and len(t) == num_samples for t in tensors):
        raise ValueError(
            f"the measurements are not of the {num_samples} samples of this dataset; resume with the "
            "dataset of the checkpoint"
        )
    # Compiled loops read these as what they should be, and would read beyond them.
    held, kinds = (
        measurements,
        (torch.float16,) if isinstance(measurements.hessian, TopHessian) else None,
    )
    if (
        held.inputs.dim() != 2
        or not held.inputs.is_floating_point()
        or (kinds and held.inputs.dtype not in kinds)
    ):
        raise ValueError(
            f"the measurements' inputs are {held.inputs.dtype} of shape {tuple(held.inputs.shape)}: a damaged checkpoint"
        )
    labels, width = measurements.labels, measurements.delta.shape[-1]
    whole = labels is None or (labels.dtype == torch.int64 and labels.shape == (num_samples,))
    if not whole or measurements.delta.dim() != 2 or width != _width(measurements.hessian):
        raise ValueError("the measurements' labels or outputs do not fit together")
    classes = isinstance(measurements.hessian, (SoftmaxHessian, TopHessian))
    beyond = measurements.hessian.size()[0] if classes else None
    if (
        labels is not None
        and beyond
        and len(labels)
        and not 0 <= int(labels.min()) <= int(labels.max()) < beyond
    ):
        raise ValueError(
            f"the measurements' labels run from {int(labels.min())} to {int(labels.max())}, beyond the layer's "
            f"{beyond} outputs: a damaged checkpoint"
        )
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise ValueError("the measurements hold numbers that are not finite: a damaged checkpoint")
    if counts is not None:
        return Sequences(measurements, counts, float(state["scale"]))
    return measurements


def check_counts(counts: Any, num_samples: int) -> None:
    """Check the number of tokens of each sample.

    Raises:
        ValueError: If they are not whole numbers, one per sample.

    Example:
        >>> check_counts(torch.tensor([3, 0]), num_samples=2)
    """
    whole = isinstance(counts, Tensor) and counts.dtype == torch.int64
    if not whole or counts.shape != (num_samples,) or bool((counts < 0).any()):
        raise ValueError(
            f"the measurements are not of the {num_samples} sequences of this dataset; resume with the "
            "dataset of the checkpoint"
        )


def _measurements(state: Mapping[str, Any]) -> Measurements:
    """The measurements of a state, of which nothing is checked yet."""
    kind, held = HESSIANS[state["hessian"]], state["hessian_tensors"]
    tensors = {name: state[name] for name in ("delta", "inputs", "losses")}
    if kind is TopHessian:
        top = TopHessian(**held, width=int(state["outputs"]))
        return TopMeasurements(**tensors, hessian=top, labels=state["labels"])
    return Measurements(**tensors, hessian=kind(**held), labels=state["labels"])


def _width(hessian: OutputHessian) -> int:
    """Number of gradients with respect to outputs that there must be of each sample.

    Raises:
        ValueError: If an output that was kept does not exist.
    """
    if not isinstance(hessian, TopHessian):
        return hessian.size()[0]
    outputs = hessian.outputs
    if outputs.dtype != torch.int32 or outputs.shape != hessian.probabilities.shape:
        raise ValueError("the measurements' kept outputs do not fit together")
    if len(outputs) and not 0 <= int(outputs.min()) <= int(outputs.max()) < hessian.width:
        raise ValueError(f"the measurements keep outputs beyond the layer's {hessian.width}")
    return outputs.shape[1]
