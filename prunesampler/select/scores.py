"""The result of one pass over the data: measurements, and the influence that follows from them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunesampler.base.checks import whole_number
from prunesampler.base.files import pack_state, unpack_state, write_atomically
from prunesampler.influence.automatic import AutoCurvature, BlockCurvature
from prunesampler.influence.curvature import (
    Curvature,
    ExactCurvature,
    IdentityCurvature,
    KroneckerCurvature,
)
from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import leave_one_out
from prunesampler.influence.sequences import Measured
from prunesampler.influence.states import (
    DAMAGED,
    class_labels,
    measurement_state,
    read_constant,
    read_measurements,
    read_name,
)
from prunesampler.pool.wanted import check_layers
from prunesampler.select.audit import Audit

CURVATURES: dict[str, Callable[..., Curvature]] = {
    kind.__name__: kind
    for kind in (
        AutoCurvature,
        ExactCurvature,
        BlockCurvature,
        KroneckerCurvature,
        IdentityCurvature,
    )
}
"""What a file can name."""


@dataclass(frozen=True, eq=False)
class Scores:
    """All that a selection and an audit need; any number of them can be made without a pass over the data.

    Args:
        measurements: Measurements of n samples.
        influence: Influence of the same samples.
        labels: Class of every sample from 0 on, int64, shape (n,), or None if unknown.
        wanted: Measurements of the objective's wanted samples, or None.
        curvature: What factorised the influence's curvature, with its damping.
        centred: Whether the mean gradient is subtracted.
        lipschitz: Lipschitz constant of the loss by the layer's outputs, or None if it has none.
        seconds: Seconds that measuring and the curvature took, by name.
        layer: Name of the measured layer in the model, or None if unknown.
        outline: A hash of a few samples' labels and shapes, to tell another dataset, or None.
        wanted_outline: The same of the wanted samples.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> pruner = InfluencePruner(data, budget=Budget(fraction=0.4), progress=False)
        >>> scores = pruner.measure(torch.nn.Linear(4, 3))
        >>> len(scores), len(pruner.choose_from(scores).pruned), scores.leave_one_out().shape
        (60, 24, torch.Size([60, 3]))
    """

    measurements: Measured
    influence: Influence
    labels: Tensor | None
    wanted: Measured | None
    curvature: Curvature
    centred: bool
    lipschitz: float | None
    seconds: dict[str, float]
    layer: str | None = None
    outline: str | None = None
    wanted_outline: str | None = None

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.measurements)

    def leave_one_out(self) -> Tensor:
        """Probability of every class for each sample, as if the layer had not been trained on it, (n, C).

        Exact to second order where the curvature is (`prunesampler.influence.leave_one_out`); they are the
        ``pred_probs`` that cleanlab asks for. In a network that memorises its labels only the layer is
        fitted anew, so they are not out of sample there: see `prunesampler.pool.splits`.

        Raises:
            ValueError: For losses without classes, and sequences.
        """
        return leave_one_out(self.measurements, self.influence)

    def audit(self, wanted: Scores | None = None, *, similar: float | None = None) -> Audit:
        """What is wrong with these samples; nothing is changed by it.

        Args:
            wanted: Scores of wanted samples by the same model; by default what the objective wanted.
            similar: Least cosine of near copies; by default far above what is usual in these features.

        Raises:
            TypeError: If the wanted samples are no scores.
            ValueError: If the wanted samples are of another layer, or ``similar`` is no cosine.

        Examples:
            >>> import torch
            >>> from prunesampler import Budget, InfluencePruner
            >>> data = [(torch.randn(16), i % 3) for i in range(60)]
            >>> pruner = InfluencePruner(data + data[:2], budget=Budget(count=9), progress=False)
            >>> scores = pruner.measure(torch.nn.Linear(16, 3))
            >>> sorted(scores.audit().copies.indices.tolist())
            [60, 61]
        """
        if wanted is not None:
            if not isinstance(wanted, Scores):
                raise TypeError(
                    f"wanted= takes scores, as pruner.measure(model) gives of a dataset, got {type(wanted).__name__}"
                )
            check_layers(self.measurements, wanted.measurements)
        target = self.wanted if wanted is None else wanted.measurements
        return Audit.of(self.measurements, self.influence, self.labels, target, similar)

    def state_dict(self) -> dict[str, Any]:
        """Measurements as plain tensors, from which the influence can be built again."""
        seen = self.measurements.labels
        other = self.labels is not None and (seen is None or not torch.equal(seen, self.labels))
        return {
            **measurement_state(self.measurements),
            "classes": self.labels if other else None,
            "wanted": None if self.wanted is None else measurement_state(self.wanted),
            "wanted_samples": None if self.wanted is None else len(self.wanted),
            "lipschitz": self.lipschitz,
            "layer": self.layer,
            "outline": self.outline,
            "wanted_outline": self.wanted_outline,
        }

    def to_bytes(self) -> bytes:
        """The scores in the format of `save`."""
        made_by = {"kind": type(self.curvature).__name__, **_options(self.curvature)}
        more = {"samples": len(self), "curvature": made_by, "centred": self.centred}
        return pack_state({"scores": self.state_dict(), **more})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all into one safetensors file, whole or not at all: ``4 n (2 C + D + 4)`` bytes."""
        write_atomically(Path(path), self.to_bytes())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, curvature: Curvature | None = None) -> Scores:
        """Read what `save` wrote, and factorise the curvature again.

        Args:
            path: The file.
            curvature: The curvature that they were made with; needed only for one of your own.

        Raises:
            ValueError: If it is no such file, damaged, or needs a curvature.

        Examples:
            >>> import tempfile, torch
            >>> from prunesampler import Budget, InfluencePruner
            >>> data = [(torch.randn(4), i % 3) for i in range(60)]
            >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
            >>> scores = pruner.measure(torch.nn.Linear(4, 3))
            >>> with tempfile.NamedTemporaryFile() as file:
            ...     scores.save(file.name)
            ...     again = Scores.load(file.name)
            >>> pruner.choose_from(again).pruned.equal(pruner.choose_from(scores).pruned)
            True
        """
        try:
            found = unpack_state(Path(path).read_bytes())
            state, samples = dict(found["scores"]), whole_number("samples", found["samples"])
            made_by, centred = dict(found["curvature"]), found["centred"] is True
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no scores: {error}") from error
        try:
            return cls.from_state(state, samples, curvature or _curvature(made_by), centred)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], num_samples: int, curvature: Curvature, center: bool
    ) -> Scores:
        """Build the scores of ``state_dict`` again.

        Raises:
            ValueError: If the state is incomplete, damaged, or of another number of samples.
        """
        measured, wanted = read_measurements(state, num_samples), state.get("wanted")
        if state.get("validation") is not None:
            raise ValueError(
                "this state is of an older release, which kept of the wanted samples only a mean; measure again"
            )
        if wanted is not None:
            size = whole_number("wanted_samples", state.get("wanted_samples"))
            wanted = read_measurements(wanted, size)
            check_layers(measured, wanted)
        started = time.perf_counter()
        try:
            factorised = curvature.factorise(measured)
            influence = Influence.build(measured.rows(), factorised, center=center)
        except (RuntimeError, MemoryError) as error:  # numbers that are finite, and absurd
            raise ValueError(f"nothing can be computed with these measurements: {error}") from error
        seconds = {"measuring_seconds": 0.0, "curvature_seconds": time.perf_counter() - started}
        labels = measured.labels if state.get("classes") is None else state["classes"]
        if labels is not None and (not isinstance(labels, Tensor) or labels.dtype != torch.int64):
            raise ValueError(f"the classes of the samples are no whole numbers: {DAMAGED}")
        return cls(
            measured, influence, class_labels(labels, num_samples), wanted, curvature, center,
            read_constant(state), seconds,
            read_name(state, "layer"), read_name(state, "outline"), read_name(state, "wanted_outline"),
        )  # fmt: skip


def check_same(scores: Scores, num_samples: int, outline: str | None) -> None:
    """Check that scores are of this dataset, as far as can be seen from a few samples.

    Raises:
        ValueError: If they are of another number of samples, or other labels or shapes.
    """
    if len(scores) != num_samples:
        raise ValueError(
            f"the scores are of {len(scores)} samples, this dataset has {num_samples}; measure it, or give the "
            "scores that were measured on it"
        )
    if scores.outline is not None and outline is not None and scores.outline != outline:
        raise ValueError(
            f"the scores are of another dataset of {num_samples} samples: labels or shapes of the samples "
            "looked at differ; measure this one"
        )


def check_wanted(scores: Scores, num_samples: int, outline: str) -> None:
    """Check that the wanted samples of these scores are those of an objective.

    Args:
        scores: Scores with wanted samples.
        num_samples: Number of samples that the objective wants.
        outline: Hash of a few of their labels and shapes.

    Raises:
        ValueError: If they are others, as far as can be seen from a few.
    """
    assert scores.wanted is not None
    if len(scores.wanted) != num_samples or scores.wanted_outline not in (None, outline):
        raise ValueError(
            f"the scores hold {len(scores.wanted)} other wanted samples than the {num_samples} of this objective; "
            "measure with a pruner of this objective"
        )


def _options(curvature: Curvature) -> dict[str, Any]:
    """What a curvature of this package was made with; nothing of one of the user's own."""
    known = type(curvature) in CURVATURES.values()
    return {f.name: getattr(curvature, f.name) for f in fields(curvature)} if known else {}  # type: ignore[arg-type]


def _curvature(made_by: dict[str, Any]) -> Curvature:
    """The curvature that a file names.

    Raises:
        ValueError: If it is none of this package, or its options are damaged.
    """
    kind = made_by.pop("kind", None)
    if not isinstance(kind, str) or kind not in CURVATURES:
        raise ValueError(
            f"the scores were made with a curvature of your own, {kind!r}; give curvature=, as it was"
        )
    numbers = all(v is None or type(v) in (int, float) for v in made_by.values())
    try:
        if numbers:
            return CURVATURES[kind](**made_by)
    except TypeError:
        pass
    raise ValueError(f"the file names a {kind} of {made_by}, which is none: it is damaged")
