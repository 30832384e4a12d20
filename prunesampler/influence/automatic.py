"""Curvatures of layers of any size, and the one that fits."""

from __future__ import annotations

from dataclasses import dataclass

from prunesampler.influence.blocks import ClassBlocks
from prunesampler.influence.curvature import (
    DEFAULT_DAMPING,
    Curvature,
    DampedCurvature,
    ExactCurvature,
    check_curved,
)
from prunesampler.influence.factorised import Factorised
from prunesampler.influence.matrix_free import MatrixFree
from prunesampler.influence.sequences import Measured
from prunesampler.influence.top import kept_outputs

MOST_PRODUCTS, FEW_OUTPUTS = 1e12, 16
"""Multiply-adds up to which the curvature of few outputs is factorised as one matrix, 20 s on one core.
With more outputs it is up to a tenth of that: above, blocks give better sets there in a tenth of the time."""
CERTAIN = 1e-9
"""Share of the mean squared norm of the inputs that is the least default damping."""
LARGEST = 8192
"""Size R up to which it is: half a gibibyte for each of four matrices."""


@dataclass(frozen=True, kw_only=True)
class BlockCurvature(DampedCurvature):
    """The GGN by its products alone, for layers of any size; a search sees it output by output.

    Shifts that are reported are exact, to a residual of a thousandth, by conjugate gradients. What is
    approximate: the rows that a search whitens, output by output (`prunesampler.influence.blocks`),
    and estimates for single samples. Time: about ten times two products of the outputs and the inputs
    of all samples for each reported shift. Memory: ``4 C D r`` bytes for blocks of rank r, 64 to 256.

    Args:
        damping: Added to the diagonal; give the weight decay in use. By default see
            :func:`default_damping`.

    Examples:
        >>> import torch
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> inputs, targets = torch.tensor([[1.0], [2.0]]), torch.tensor([0.0, 1.0])
        >>> losses, delta, hessian = SquaredError().derivatives(inputs, targets)
        >>> measured = Measurements(delta, inputs, hessian, losses)
        >>> factorised = BlockCurvature(damping=1.0).factorise(measured)  # H = 5 + 1
        >>> factorised.apply_inverse(torch.tensor([[12.0]]))
        tensor([[2.]], dtype=torch.float64)
    """

    def factorise(self, measurements: Measured, damping: float | None = None) -> MatrixFree:
        """Prepare the products, and the blocks that guide them.

        Raises:
            ValueError: If the damping is zero, or no damping is given and the curvature is zero.
        """
        given = self.damping if damping is None else damping
        check_curved(measurements, given)
        chosen = default_damping(measurements) if given is None else given
        if chosen <= 0:
            raise ValueError(
                f"the block curvature needs a positive damping, got {chosen:.3g}; give damping= the "
                "weight decay in use, or None for the default"
            )
        return MatrixFree(measurements, ClassBlocks.of(measurements, chosen), chosen)

    def keep(self, measurements: Measured) -> Measured:
        """The most probable outputs of each sample, where a softmax has many.

        Raises:
            ValueError: If inputs of such a layer are too large for half precision.
        """
        return kept_outputs(measurements)

    def refactorise(self, measurements: Measured, near: Factorised) -> MatrixFree:
        """The products of these samples, guided by the blocks of ``near``."""
        guide = near.near if isinstance(near, MatrixFree) else near
        return MatrixFree(measurements, guide, near.damping)


def default_damping(measurements: Measured) -> float:
    """A thousandth of the mean eigenvalue, over as many eigenvalues as there are samples at most.

    With fewer samples than parameters most eigenvalues are zero. A damping beside their mean would be
    so small that steps towards an inverse run out. Where a model is certain of everything, curvature is
    rounding; then it is at least ``CERTAIN`` of the mean square of the inputs.

    Examples:
        >>> import torch
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> inputs, targets = torch.tensor([[1.0, 2.0]]), torch.tensor([0.0])
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(1, 1), targets)
        >>> default_damping(Measurements(delta, inputs, hessian, losses))  # eigenvalues 10 and 0
        0.01
    """
    fewer = min(len(measurements.tokens), measurements.parameters)
    trace = measurements.mean_eigenvalue() * measurements.parameters
    inputs = measurements.tokens.inputs
    looked_at = inputs[:: max(1, len(inputs) // 4096)].double()
    return max(DEFAULT_DAMPING * trace / fewer, CERTAIN * float(looked_at.square().sum(1).mean()))


@dataclass(frozen=True, kw_only=True)
class AutoCurvature(DampedCurvature):
    """The default: `ExactCurvature` while one matrix is quick and small, else `BlockCurvature`.

    Shifts that are reported are exact either way, but for layers of more than 256 outputs, of which
    each sample keeps the 64 most probable (`prunesampler.influence.top`). The choice rests on the
    numbers of samples, of parameters and of outputs alone, not on the machine.

    Args:
        damping: Added to the diagonal; give the weight decay in use. By default that of the curvature
            that is chosen.

    Examples:
        >>> AutoCurvature(damping=0.1).of(num_samples=50_000, parameters=585, outputs=10)
        ExactCurvature(damping=0.1, max_size=8192)
        >>> AutoCurvature(damping=0.1).of(num_samples=50_000, parameters=50_787, outputs=100)
        BlockCurvature(damping=0.1)
    """

    def of(self, num_samples: int, parameters: int, outputs: int) -> Curvature:
        """The curvature for this number n of samples, or of tokens, R of parameters, and C of outputs."""
        products = num_samples * parameters**2 + parameters**3 / 3
        most = MOST_PRODUCTS if outputs <= FEW_OUTPUTS else MOST_PRODUCTS / 10
        if parameters <= LARGEST and products <= most:
            return ExactCurvature(damping=self.damping, max_size=LARGEST)
        return BlockCurvature(damping=self.damping)

    def keep(self, measurements: Measured) -> Measured:
        """See `BlockCurvature`, which is chosen for all layers whose outputs are not all kept.

        Raises:
            ValueError: If inputs of such a layer are too large for half precision.
        """
        return kept_outputs(measurements) if measurements.parameters > LARGEST else measurements

    def check(self, measurements: Measured, num_samples: int) -> None:
        """See the curvature that is chosen.

        Raises:
            ValueError: If the loss has no curvature on these samples.
        """
        tokens = num_samples * len(measurements.tokens) // len(measurements)
        chosen = self.of(tokens, measurements.parameters, measurements.hessian.size()[0])
        chosen.check(measurements, num_samples)

    def factorise(self, measurements: Measured, damping: float | None = None) -> Factorised:
        """Factorise with the curvature that is chosen for these samples.

        Raises:
            ValueError: If the curvature is not positive definite.
        """
        outputs = measurements.hessian.size()[0]
        chosen = self.of(len(measurements.tokens), measurements.parameters, outputs)
        return chosen.factorise(measurements, damping)

    def refactorise(self, measurements: Measured, near: Factorised) -> Factorised:
        """See the curvature that made ``near``."""
        if isinstance(near, MatrixFree):
            return BlockCurvature().refactorise(measurements, near)
        return ExactCurvature().refactorise(measurements, near)
