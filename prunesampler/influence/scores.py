"""The result of one pass over the data: measurements, and the influence that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from prunesampler.influence.influence import Influence
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.influence.top import TopMeasurements
from prunesampler.influence.top_rows import TopHessian

HESSIANS: dict[str, type[OutputHessian]] = {
    kind.__name__: kind for kind in (SoftmaxHessian, DiagonalHessian, DenseHessian, TopHessian)
}


@dataclass(frozen=True, eq=False)
class Scores:
    """All that a selection needs; any number of selections, of any size, can be made from it.

    Args:
        measurements: Measurements of n samples.
        influence: Influence of the same samples.
        labels: Class of every sample from 0 on, int64, shape (n,), or None if unknown.
        wanted: Mean gradient of the objective's wanted samples, shape (K, D), float64, or None.
        seconds: Seconds that measuring and the curvature took, by name.
        layer: Name of the measured layer in the model, or None if unknown.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> pruner = InfluencePruner(data, budget=Budget(fraction=0.4), progress=False)
        >>> scores = pruner.measure(torch.nn.Linear(4, 3))
        >>> len(scores.influence), pruner.scores_from(scores.state_dict()).labels.tolist()[:4]
        (60, [0, 1, 2, 0])
    """

    measurements: Measured
    influence: Influence
    labels: Tensor | None
    wanted: Tensor | None
    seconds: dict[str, float]
    layer: str | None = None

    def state_dict(self) -> dict[str, Any]:
        """Measurements as plain tensors, from which the influence can be built again."""
        held = self.measurements.tokens
        sequences = {}
        if isinstance(self.measurements, Sequences):
            sequences = {"counts": self.measurements.counts, "scale": self.measurements.scale}
        return {
            **sequences,
            "delta": held.delta,
            "inputs": held.inputs,
            "losses": held.losses,
            "labels": held.labels,
            "hessian": type(held.hessian).__name__,
            "hessian_tensors": dict(held.hessian.tensors),
            "outputs": held.hessian.size()[0],
            "validation": self.wanted,  # under the key that older states have
            "layer": self.layer,
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
    """Name of the measured layer from :meth:`Scores.state_dict`; None in states of older releases.

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


def read_measurements(state: Mapping[str, Any], num_samples: int) -> tuple[Measured, Tensor | None]:
    """Measurements and the wanted samples' mean gradient from :meth:`Scores.state_dict`.

    Raises:
        ValueError: If they are incomplete or damaged, or of another number of samples.

    Example:
        >>> one = torch.ones(3, 1)
        >>> state = {"delta": one, "inputs": one, "losses": one[:, 0], "labels": None}
        >>> state |= {"hessian": "DiagonalHessian", "hessian_tensors": {"values": one}}
        >>> len(read_measurements({**state, "validation": None}, num_samples=3)[0])
        3
    """
    try:
        measurements = _measurements(state)
        counts, wanted = state.get("counts"), state["validation"]
        if counts is not None:
            check_counts(counts, num_samples)
            num_samples = int(counts.sum())  # of what was measured
    except (KeyError, TypeError) as error:
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
    labels, width = measurements.labels, measurements.delta.shape[-1]
    whole = labels is None or (labels.dtype == torch.int64 and labels.shape == (num_samples,))
    if not whole or measurements.delta.dim() != 2 or width != _width(measurements.hessian):
        raise ValueError("the measurements' labels or outputs do not fit together")
    if not all(bool(torch.isfinite(t).all()) for t in tensors):
        raise ValueError("the measurements hold numbers that are not finite: a damaged checkpoint")
    if counts is not None:
        return Sequences(measurements, counts, float(state["scale"])), wanted
    return measurements, wanted


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
