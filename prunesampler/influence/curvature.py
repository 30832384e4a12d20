"""Curvature of the loss with respect to a linear layer's parameters, and its inverse.

The curvature is the mean generalised Gauss-Newton matrix (GGN) of the measured samples,
``H = (1/n) sum_i H_i ⊗ a_i a_i^T + damping I``, where ``H_i`` is the loss's Hessian with respect to
the C outputs and ``a_i`` the layer's input. If the outputs go straight into the loss, GGN and
Hessian are the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.factorised import (
    ExactFactorised,
    Factorised,
    IdentityFactorised,
    KroneckerFactorised,
)
from prunesampler.influence.hessians import DenseHessian, OutputHessian
from prunesampler.influence.matrix_free import MatrixFree
from prunesampler.influence.sequences import Measured, check_rank_one

SINGLE = 1e-5
"""Damping below this share of the largest diagonal entry would drown in float32 rounding."""
DEFAULT_DAMPING = 1e-3
"""Damping as a share of the curvature's mean eigenvalue, where none is given."""
SEARCH_DAMPING = 1e-2
"""Largest damping of whitened rows, as a share of the mean eigenvalue."""


class Curvature(Protocol):
    """Turns measurements into a factorised curvature.

    For a curvature of your own, inherit from this class and write ``factorise``.
    """

    def factorise(self, measurements: Measured, damping: float | None = None) -> Factorised:
        """Factorise the curvature of these samples.

        Args:
            measurements: The measured samples.
            damping: Replaces the curvature's own damping.
        """

    def refactorise(self, measurements: Measured, near: Factorised) -> Factorised:
        """Factorise the curvature of nearly the same samples, with the same damping.

        Args:
            measurements: The measured samples.
            near: A factorised curvature of the same kind, close to theirs. It may save work.
        """
        return self.factorise(measurements, near.damping)

    def keep(self, measurements: Measured) -> Measured:
        """What to keep of a batch's measurements until all are there; by default everything."""
        return measurements

    def check(self, measurements: Measured, num_samples: int) -> None:
        """Check on a few samples whether all can be factorised; by default this checks nothing.

        Args:
            measurements: Measurements of a few of the samples.
            num_samples: Number of samples in all.

        Raises:
            ValueError: If they cannot; the message says why, and what to do.
        """
        return


@dataclass(frozen=True, kw_only=True)
class DampedCurvature(Curvature):
    """A curvature with damping, for losses that are curved."""

    damping: float | None = None

    def __post_init__(self) -> None:
        if self.damping is not None and not 0 <= self.damping < math.inf:
            raise ValueError(
                f"damping must be zero or more and finite, got {self.damping}; give the weight decay in use"
            )

    def check(self, measurements: Measured, num_samples: int) -> None:
        """Check that a loss of the user's own has curvature.

        Raises:
            ValueError: If it has none on these samples.
        """
        del num_samples
        # Closed forms have curvature, even if it vanishes on a few samples that the model is sure of.
        if isinstance(measurements.hessian, DenseHessian):
            check_curved(measurements, self.damping)


@dataclass(frozen=True, kw_only=True)
class ExactCurvature(DampedCurvature):
    """The GGN itself: one matrix of size R = K * D, factorised once for all samples.

    K is C - 1 for cross-entropy (softmax is invariant to a shift of all outputs), else C; D counts the
    layer's inputs and its bias. Time: ``n R^2 / 2 + R^3 / 6`` multiply-adds to factorise and ``n R^2 / 2``
    to whiten. Peak memory: ``4 n R`` bytes for the whitened rows and ``32 R^2`` for matrices.

    Args:
        damping: Added to the diagonal: give the weight decay in use. Default: 1e-3 of the mean eigenvalue.
        max_size: Largest R that is accepted.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, targets)
        >>> measured = Measurements(delta, inputs, hessian, losses)
        >>> factorised = ExactCurvature(damping=1.0).factorise(measured)  # H = 5 + 1
        >>> factorised.apply_inverse(torch.tensor([[12.0]]))
        tensor([[2.0000]], dtype=torch.float64)
    """

    max_size: int = 8192

    def check(self, measurements: Measured, num_samples: int) -> None:
        """Check the size R of the matrix, and that a loss of the user's own has curvature.

        Raises:
            ValueError: If R is above ``max_size``, or the loss has no curvature on these samples.
        """
        self._check_size(measurements, num_samples)
        super().check(measurements, num_samples)

    def _check_size(self, measurements: Measured, num_samples: int) -> None:
        rows, columns = measurements.shape
        size = rows * columns
        if size > self.max_size:
            raise ValueError(
                f"exact curvature of this layer has size R = {rows} * {columns} = {size}, above "
                f"max_size={self.max_size}: {8 * size**2 / 2**30:.1f} GiB a matrix and "
                f"{4 * num_samples * size / 2**30:.1f} GiB of whitened rows. Use "
                "AutoCurvature(), the default, which takes any size, or a larger max_size"
            )

    def factorise(self, measurements: Measured, damping: float | None = None) -> ExactFactorised:
        """Factorise the mean GGN with its damping, and if that is large with less for whitened rows.

        Raises:
            ValueError: If R is above ``max_size``, or the curvature is not positive definite.
        """
        given = self.damping if damping is None else damping
        self._check_size(measurements, len(measurements))
        check_curved(measurements, given)
        matrix = measurements.gauss_newton()
        size, largest = len(matrix), float(matrix.diagonal().max())
        chosen = DEFAULT_DAMPING * float(matrix.trace()) / size if given is None else given
        if chosen < SINGLE * largest:
            del matrix  # before another of its size is made
            matrix = measurements.gauss_newton(torch.float64)
        light = max(SINGLE * largest, min(chosen, SEARCH_DAMPING * float(matrix.trace()) / size))
        light_cholesky, failed = _damp_and_factorise(matrix, light)
        cholesky = light_cholesky
        if chosen != light:  # else the same again, in a third of all the time
            cholesky, failed = _damp_and_factorise(matrix, chosen - light)  # chosen in all
        if failed:
            raise ValueError(
                f"the curvature is not positive definite with damping={chosen:.3g}, beside a largest "
                f"diagonal entry of {largest:.3g}: some inputs of the layer are zero or depend on "
                "others, or the loss is not convex in its output; give the curvature a larger damping"
                + (", which is 1e-3 of the mean eigenvalue by default" if given is None else "")
                + (", or None for the default" if self.damping is not None else "")
            )
        return ExactFactorised(cholesky, light_cholesky, chosen)

    def refactorise(self, measurements: Measured, near: Factorised) -> MatrixFree:
        """Products with the curvature of these samples, and inverses by conjugate gradients.

        They take less work than another factorisation, as ``near`` preconditions them. The norm of an
        inverse is accurate to about a thousandth where there are more samples than parameters.
        """
        return MatrixFree(measurements, near, near.damping)


@dataclass(frozen=True, kw_only=True)
class KroneckerCurvature(DampedCurvature):
    """Kronecker approximation (KFAC): mean output Hessian ⊗ mean outer product of inputs.

    It is cheap for layers of any size, but **not exact even for one linear layer**, unless inputs
    and output Hessians are independent. Every number reported with it inherits the error.

    Source: Martens and Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate
    Curvature", ICML 2015.

    Args:
        damping: Added to the diagonal: give the weight decay in use. Default: 1e-3 of the mean eigenvalue.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, targets)
        >>> measured = Measurements(delta, inputs, hessian, losses)
        >>> KroneckerCurvature().factorise(measured).damping
        0.005
    """

    def check(self, measurements: Measured, num_samples: int) -> None:
        """Check that the samples are no sequences, and that a loss of the user's own has curvature.

        Raises:
            ValueError: If they are, or it has none on these samples.
        """
        check_rank_one(measurements, type(self).__name__)
        super().check(measurements, num_samples)

    def factorise(
        self, measurements: Measured, damping: float | None = None
    ) -> KroneckerFactorised:
        """Factorise both Kronecker factors into eigenvalues and eigenvectors.

        Raises:
            ValueError: If the damping is zero, or no damping is given and the curvature is zero.
        """
        check_rank_one(measurements, type(self).__name__)
        given = self.damping if damping is None else damping
        check_curved(measurements, given)
        factors = measurements.tokens.kronecker_factors()
        left, right = (torch.linalg.eigh(part) for part in factors)
        mean = float(left[0].mean() * right[0].mean())
        chosen = DEFAULT_DAMPING * mean if given is None else given
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
    """No curvature: influence is the centred gradient over n. For baselines and tests.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> dataset = torch.utils.data.TensorDataset(torch.randn(20, 4), torch.arange(20) % 2)
        >>> pruner = InfluencePruner(
        ...     dataset, budget=Budget(count=5), curvature=IdentityCurvature(), progress=False
        ... )
        >>> len(pruner.select(torch.nn.Linear(4, 2)).kept)
        15
    """

    def factorise(self, measurements: Measured, damping: float | None = None) -> IdentityFactorised:
        """Return the identity, whatever the samples."""
        check_rank_one(measurements, type(self).__name__)
        return IdentityFactorised()


def _damp_and_factorise(matrix: Tensor, damping: float) -> tuple[Tensor, bool]:
    """Add damping to the matrix in place; return its Cholesky factor, and whether there is none.

    At R = 8,192 a copy would take another half GiB.
    """
    matrix.diagonal().add_(damping)
    cholesky, failed = torch.linalg.cholesky_ex(matrix)
    return cholesky, bool(failed)


def _bent(hessian: OutputHessian) -> bool:
    """Whether any sample has curvature; no matrix of all outputs is made where the diagonal tells."""
    if isinstance(hessian, DenseHessian):
        return bool(hessian.values.any())
    return bool(hessian.diagonal().any())


def check_curved(measurements: Measured, damping: float | None) -> None:
    """Check that there is curvature, or a damping in its place.

    Raises:
        ValueError: If there is neither; the message says which is zero, the loss's or the inputs'.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> inputs = torch.zeros(2, 1)
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, inputs)
        >>> check_curved(Measurements(delta, inputs, hessian, losses), damping=None)
        Traceback (most recent call last):
        ValueError: the curvature of all 2 samples measured is zero: every input of the layer is ...
    """
    if damping:
        return
    if not any(_bent(chunk.hessian) for chunk in measurements.tokens.chunks()):
        raise ValueError(
            f"the curvature of all {len(measurements)} samples measured is zero: the loss has no "
            "curvature in the layer's output (as L1, or Huber's loss far from its target, or a "
            "softmax that is certain of every answer), so no influence can be had from it; measure "
            "with a smooth loss, as losses=SquaredError(), or give the curvature damping=, the "
            "weight decay in use, or take curvature=IdentityCurvature()"
        )
    if not measurements.tokens.inputs.any():
        raise ValueError(
            f"the curvature of all {len(measurements)} samples measured is zero: every input of the "
            "layer is zero, so it has learnt nothing yet; choose another layer with head=, or give "
            "the curvature damping=, the weight decay in use"
        )
