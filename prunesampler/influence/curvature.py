"""Curvature of the loss by a linear layer's parameters, and its inverse.

The curvature is the mean generalised Gauss-Newton matrix (GGN) of the measured samples,
``H = (1/n) sum_i H_i ⊗ a_i a_i^T + damping I``, where ``H_i`` is the loss's Hessian by the C outputs
and ``a_i`` the layer's input. For a linear layer under its loss, GGN and Hessian are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.conjugate import conjugate_gradients
from prunesampler.influence.factorised import (
    ExactFactorised,
    Factorised,
    IdentityFactorised,
    KroneckerFactorised,
)
from prunesampler.influence.measurements import DenseHessian, Measurements

SINGLE = 1e-5
"""Damping below this share of the largest diagonal entry would drown in float32 rounding."""
DEFAULT_DAMPING = 1e-3
"""Share of the curvature's mean eigenvalue that is added where no damping is given."""
SEARCH_DAMPING = 1e-2
"""The same, at most, for the coordinates of the search."""


class Curvature(Protocol):
    """Turns measured samples into a factorised curvature.

    A curvature of your own inherits from this class and writes `factor`; the rest follows.
    """

    def factorise(self, measurements: Measurements, damping: float | None = None) -> Factorised:
        """Factorise the curvature of these samples.

        Args:
            measurements: the measured samples.
            damping: use this instead of the curvature's own setting.
        """

    def apply_inverse_once(
        self, measurements: Measurements, matrix: Tensor, near: Factorised
    ) -> Tensor:
        """``H^-1 matrix`` with the curvature of these samples, for this one matrix.

        For a single matrix there may be a cheaper way than to factorise; the answer means the same.

        Args:
            measurements: the measured samples.
            matrix: shape (K, D).
            near: a factorised curvature that resembles theirs, of the same kind; its damping is used.
        """
        return self.factorise(measurements, near.damping).apply_inverse(matrix)

    def check(self, measurements: Measurements, num_samples: int) -> None:
        """Find out from a few samples what would fail with all of them; here nothing.

        Args:
            measurements: measurements of any of the samples.
            num_samples: how many there are in all.

        Raises:
            ValueError: when it would, with the reason and the way out.
        """


@dataclass(frozen=True, kw_only=True)
class ExactCurvature(Curvature):
    """The GGN itself: one matrix of size R = K * D, one Cholesky for all samples.

    K is C - 1 for cross-entropy (softmax does not see a shift of all outputs), else C; D is the
    layer's inputs plus one for the bias. Time: ``n R^2 / 2 + R^3 / 6`` multiply-adds to factorise
    and ``n R^2 / 2`` to whiten. Peak memory: ``4 n R`` bytes for the whitened rows, ``32 R^2`` for matrices.

    Args:
        damping: added to the diagonal; give the weight decay in use. Default: 1e-3 of the mean
            eigenvalue.
        max_size: refuse R above this.
    """

    damping: float | None = None
    max_size: int = 8192

    def __post_init__(self) -> None:
        _check_damping(self.damping)

    def check(self, measurements: Measurements, num_samples: int) -> None:
        """Check the size R of the matrix, and that there can be curvature, from any samples.

        Raises:
            ValueError: when R is above ``max_size``, or these samples show that the loss has none.
        """
        self._check_size(measurements, num_samples)
        check_loss_curves(measurements, self.damping)

    def _check_size(self, measurements: Measurements, num_samples: int) -> None:
        rows, columns = measurements.shape
        size = rows * columns
        if size > self.max_size:
            raise ValueError(
                f"exact curvature of this layer has size R = {rows} * {columns} = {size}, above "
                f"max_size={self.max_size}: {8 * size**2 / 2**30:.1f} GiB a matrix and "
                f"{4 * num_samples * size / 2**30:.1f} GiB of whitened rows. Use "
                "KroneckerCurvature() (an approximation), a smaller layer, or a larger max_size"
            )

    def factorise(
        self, measurements: Measurements, damping: float | None = None
    ) -> ExactFactorised:
        """Factorise the mean GGN.

        Raises:
            ValueError: when R is above ``max_size``, or the curvature is not positive definite.
        """
        given = self.damping if damping is None else damping
        self._check_size(measurements, len(measurements))
        check_curved(measurements, given)
        matrix = measurements.gauss_newton()
        size, largest = len(matrix), float(matrix.diagonal().max())
        chosen = _first(given, DEFAULT_DAMPING * float(matrix.trace()) / size)
        if chosen < SINGLE * largest:
            del matrix
            matrix = measurements.gauss_newton(torch.float64)
        light = max(SINGLE * largest, min(chosen, SEARCH_DAMPING * float(matrix.trace()) / size))
        matrix.diagonal().add_(light)
        search, _ = torch.linalg.cholesky_ex(matrix)
        matrix.diagonal().add_(chosen - light)
        cholesky, failed = torch.linalg.cholesky_ex(matrix)
        if failed:
            raise ValueError(
                f"the curvature is not positive definite with damping={chosen:.3g}, beside a largest "
                f"diagonal entry of {largest:.3g}: some inputs of the layer are zero or depend on "
                "others, or the loss is not convex in its output; give the curvature a larger damping"
                + (", which is 1e-3 of the mean eigenvalue by default" if given is None else "")
                + (", or None for the default" if self.damping is not None else "")
            )
        return ExactFactorised(cholesky, search, chosen)

    def apply_inverse_once(
        self, measurements: Measurements, matrix: Tensor, near: Factorised
    ) -> Tensor:
        """``H^-1 matrix`` by conjugate gradients on the GGN itself, with ``near`` to start from.

        Its norm is right to about a thousandth where there are more samples than parameters. With far
        fewer, and a small damping, the steps may run out; then the answer is too short.
        """

        def product(direction: Tensor) -> Tensor:
            return measurements.curvature_product(direction) + near.damping * direction

        return conjugate_gradients(product, matrix, near.apply_inverse)


@dataclass(frozen=True, kw_only=True)
class KroneckerCurvature(Curvature):
    """Kronecker approximation (KFAC): mean output Hessian ⊗ mean outer product of inputs.

    Cheap, for layers of any size, and **not exact even for one linear layer**, unless inputs and
    output Hessians are independent. Every number reported with it inherits the error.

    Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
    Curvature", ICML 2015.

    Args:
        damping: added to the diagonal; give the weight decay in use. Default: 1e-3 of the mean
            eigenvalue.
    """

    damping: float | None = None

    def __post_init__(self) -> None:
        _check_damping(self.damping)

    def check(self, measurements: Measurements, num_samples: int) -> None:
        """Check that there is curvature.

        Raises:
            ValueError: when these samples have none at all.
        """
        del num_samples
        check_loss_curves(measurements, self.damping)

    def factorise(
        self, measurements: Measurements, damping: float | None = None
    ) -> KroneckerFactorised:
        """Factorise both small matrices.

        Raises:
            ValueError: when the damping is zero, or no damping is given and the curvature is zero.
        """
        given = self.damping if damping is None else damping
        check_curved(measurements, given)
        left, right = (torch.linalg.eigh(part) for part in measurements.kronecker_factors())
        chosen = _first(given, DEFAULT_DAMPING * float(left[0].mean() * right[0].mean()))
        if chosen <= 0:
            raise ValueError(
                f"the Kronecker curvature needs a positive damping, got {chosen:.3g}; give damping="
                + (", or None for the default" if given is not None else "")
            )
        return KroneckerFactorised(
            left[0].clamp(min=0), left[1], right[0].clamp(min=0), right[1], chosen
        )


@dataclass(frozen=True)
class IdentityCurvature(Curvature):
    """No curvature: influence is the centred gradient over n. A baseline, and for tests."""

    def factorise(
        self, measurements: Measurements, damping: float | None = None
    ) -> IdentityFactorised:
        """The identity, whatever the samples."""
        del measurements, damping
        return IdentityFactorised()


def check_loss_curves(measurements: Measurements, damping: float | None) -> None:
    """Check from a few samples that a loss of the user's own has curvature.

    Closed forms have it, if not with a network that is certain of these samples for the moment.

    Raises:
        ValueError: see :func:`check_curved`.
    """
    if isinstance(measurements.hessian, DenseHessian):
        check_curved(measurements, damping)


def check_curved(measurements: Measurements, damping: float | None) -> None:
    """Check that there is curvature, or a damping in its place.

    Raises:
        ValueError: when there is neither, naming which of the two is missing and why.
    """
    if damping:
        return
    if not any(chunk.hessian.total().any() for chunk in measurements.chunks()):
        raise ValueError(
            f"the curvature of all {len(measurements)} samples measured is zero: the loss has no "
            "curvature in the layer's output (as L1, or Huber's loss far from its target, or a "
            "softmax that is certain of every answer), so no influence can be had from it; score "
            "with a smooth loss, as losses=SquaredError(), or give the curvature damping=, the "
            "weight decay in use, or take curvature=IdentityCurvature()"
        )
    if not measurements.inputs.any():
        raise ValueError(
            f"the curvature of all {len(measurements)} samples measured is zero: every input of the "
            "layer is zero, so it has learnt nothing yet; choose another layer with head=, or give "
            "the curvature damping=, the weight decay in use"
        )


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)


def _check_damping(damping: float | None) -> None:
    if damping is not None and not damping >= 0:
        raise ValueError(
            f"damping must be zero or more, got {damping}; give the weight decay in use"
        )
