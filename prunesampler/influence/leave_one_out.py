"""What the layer would say of each sample, had it not been trained on it.

Without sample i, the parameters move by ``(H - H_i ⊗ a_i a_i^T / n)^-1 (g_i - gbar) / n``: one step of Newton's
method, with the curvature of the others. Seen at the sample's own outputs this needs matrices of size K only,
the leverage ``L_i = (1/n) (I ⊗ a_i)^T H^-1 (I ⊗ a_i)``:

    outputs move by (I - L_i H_i)^-1 (L_i delta_i - (1/n) a_i^T H^-1 gbar)

Source: Rad and Maleki, "A scalable estimate of the out-of-sample prediction error via approximate
leave-one-out cross-validation", JRSS B 2020, equation 9, there for one output.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunesampler.influence.directions import diagonal_factors
from prunesampler.influence.factorised import ExactFactorised
from prunesampler.influence.hessians import SoftmaxHessian, to_helmert
from prunesampler.influence.influence import Influence
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.influence.top_rows import TopHessian

IN_DOUBLE = 1024
"""Size R up to which the inverse is multiplied in double precision."""
LARGEST = 2**31
"""Bytes of probabilities that are written out at most."""
CHUNK = 1024
Move = Callable[[Measurements], Tensor]


def leave_one_out(measurements: Measured, influence: Influence) -> Tensor:
    """Probability of every class for each sample, by a layer that was fitted to all others.

    With the exact curvature, exact to second order for a convex layer at its optimum. With any other the
    outputs are taken one by one, with the mean of their curvatures: an approximation (`is_exact`).

    Args:
        measurements: Measurements under a cross-entropy over C classes.
        influence: Influence of the same n samples.

    Returns:
        Shape (n, C), float32.

    Raises:
        ValueError: For other losses, sequences, or more than 2 GiB of probabilities.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> scores = InfluencePruner(data, budget=Budget(count=20), progress=False).measure(torch.nn.Linear(4, 3))
        >>> leave_one_out(scores.measurements, scores.influence).shape
        torch.Size([60, 3])
    """
    held = check_classes(measurements)
    move = _exact(held, influence) if is_exact(influence) else _approximate(held, influence)
    found = []
    for start in range(0, len(held), CHUNK):
        chunk = held[start : start + CHUNK]
        outputs = probabilities(chunk).clamp(min=1e-30).log()
        found.append((outputs + move(chunk)).softmax(1).float())
    return torch.cat(found)


def is_exact(influence: Influence) -> bool:
    """Whether the curvature is the exact one, in one matrix."""
    return isinstance(influence.factorised, ExactFactorised)


def probabilities(measurements: Measurements) -> Tensor:
    """In-sample probability of every class, shape (n, C), float64; of kept outputs zero elsewhere."""
    hessian = measurements.hessian
    whole = hessian.spread() if isinstance(hessian, TopHessian) else hessian
    assert isinstance(whole, SoftmaxHessian)
    return whole.probabilities.double()


def check_classes(measurements: Measured) -> Measurements:
    """Check that there is one probability for each class and sample.

    Raises:
        ValueError: For losses that are no cross-entropy, sequences, or too many probabilities.
    """
    if isinstance(measurements, Sequences):
        raise ValueError("sequences have a class for each token, not one for each sample")
    if not isinstance(measurements.hessian, (SoftmaxHessian, TopHessian)):
        raise ValueError(
            f"the loss has no classes to be wrong about ({type(measurements.hessian).__name__}); measure with "
            "losses=CrossEntropy()"
        )
    size = 4 * len(measurements) * measurements.hessian.size()[0]
    if size > LARGEST:
        raise ValueError(
            f"the probabilities of {len(measurements)} samples and {measurements.hessian.size()[0]} classes take "
            f"{size / 2**30:.1f} GiB, above 2; measure a part of the samples"
        )
    return measurements


def _exact(held: Measurements, influence: Influence) -> Move:
    """The move of the outputs, shape (b, C), with the Cholesky factor of the exact curvature."""
    factorised, basis, n = influence.factorised, held.hessian.basis(), len(held)
    assert isinstance(factorised, ExactFactorised)
    outputs, inputs = held.shape
    precision = torch.float64 if outputs * inputs <= IN_DOUBLE else torch.float32
    inverse = torch.cholesky_inverse(factorised.cholesky).to(precision)
    inverse = inverse.view(outputs, inputs, outputs, inputs)
    mean = factorised.apply_inverse(influence.mean)

    def move(chunk: Measurements) -> Tensor:
        a = chunk.inputs.to(precision)
        leverage = torch.empty(len(a), outputs, outputs, dtype=torch.float64)
        for k in range(outputs):
            seen = (a @ inverse[k, :, k:].flatten(1)).view(len(a), outputs - k, inputs)
            leverage[:, k, k:] = leverage[:, k:, k] = (
                torch.einsum("nkd,nd->nk", seen, a).double() / n
            )
        pull = to_helmert(chunk.delta[..., None])
        push = chunk.inputs.double() @ mean.T / n
        system = (
            torch.eye(outputs, dtype=torch.float64) - leverage @ chunk.hessian.dense(basis).double()
        )
        moved = torch.linalg.solve(system, leverage @ pull - push[..., None])
        found: Tensor = moved[..., 0] @ basis.T
        return found

    return move


def _approximate(held: Measurements, influence: Influence) -> Move:
    """The move of the outputs, each with the curvature ``h_c A``, A the mean outer product of the inputs.

    Then the leverage is diagonal, and what is left of each sample is a diagonal and a matrix of rank one.
    """
    n, (bends, outer) = len(held), diagonal_factors(held)
    values, vectors = torch.linalg.eigh(outer)
    damping = influence.factorised.damping
    weights = 1 / (torch.outer(values.clamp(min=0), bends) + max(damping, 1e-12))

    def move(chunk: Measurements) -> Tensor:
        leverage = (chunk.inputs.double() @ vectors).square() @ weights / n
        p, delta = probabilities(chunk), _spread(chunk)
        mass = chunk.hessian.mass.double()[:, None]  # type: ignore[attr-defined]
        # (I - L (diag q - q p^T)) x = L delta, with q = mass * p, by Sherman and Morrison's formula.
        own = 1 / (1 - leverage * mass * p).clamp(min=1e-3)
        right, turned = own * leverage * delta, own * leverage * mass * p
        share = (p * right).sum(1, keepdim=True) / (1 + (p * turned).sum(1, keepdim=True))
        found: Tensor = right - turned * share
        return found

    return move


def _spread(chunk: Measurements) -> Tensor:
    """Gradient by every output, shape (b, C), float64; of kept outputs zero elsewhere."""
    if not isinstance(chunk.hessian, TopHessian):
        return chunk.delta.double()
    whole = chunk.delta.new_zeros(len(chunk), chunk.hessian.width).double()
    return whole.scatter_(1, chunk.hessian.outputs.long(), chunk.delta.double())
