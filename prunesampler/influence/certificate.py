"""How pruning a set of samples changes the parameters: predictions and proved bounds."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from prunesampler.base.indices import complement
from prunesampler.influence.curvature import Curvature
from prunesampler.influence.factorised import Factorised
from prunesampler.influence.influence import Influence
from prunesampler.influence.rows import CHUNK
from prunesampler.influence.sequences import Measured

LANCZOS_STEPS, LANCZOS_TOLERANCE = 80, 1e-4
"""Largest number of steps, and the relative change of the eigenvalue at which they end."""


def newton_shift(kept: Factorised, influence: Influence, pruned: Tensor) -> Tensor:
    """Change of the parameters by one Newton step on the kept samples, shape (K, D), float64.

    ``H_kept^-1 sum over S of (g_i - gbar) / (n - m)``: the first-order shift with the curvature of
    the kept samples. Exact for a quadratic loss; for cross-entropy it repairs most of what first
    order misses (Koh et al., "On the Accuracy of Influence Functions for Measuring Group Effects",
    NeurIPS 2019, compare both).

    Args:
        kept: Curvature of the samples that stay; an approximate one gives an approximate step.
        influence: Influence of all samples.
        pruned: Indices of the pruned samples.

    Examples:
        >>> from prunesampler.influence.factorised import IdentityFactorised
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> newton_shift(IdentityFactorised(), influence, torch.tensor([0, 1])).tolist()
        [[0.0]]
    """
    return kept.apply_inverse(influence.gradient_sum(pruned)) / (len(influence) - len(pruned))


def curvature_share(
    kept: Factorised, full: Factorised, shape: tuple[int, int], seed: int = 0
) -> float:
    """Smallest generalised eigenvalue of the kept samples' curvature against that of all.

    In every direction, the mean loss of the kept samples has at least this share of the curvature
    that the mean loss of all samples has. Near one nothing was lost; near zero some direction has
    little curvature but the damping, and predictions along it are worth little. Both curvatures
    include the damping.

    Computed by Lanczos' iteration on ``H^-1 H_kept``, which is symmetric in the inner product of
    ``H``. It converges from above; once it has, the error is about 1e-4.

    Args:
        kept: Curvature of the samples that stay.
        full: Curvature of all samples.
        shape: Shape (K, D) of the parameters.
        seed: Seed of the random first direction.

    Examples:
        >>> from prunesampler.influence.factorised import IdentityFactorised
        >>> curvature_share(IdentityFactorised(), IdentityFactorised(), shape=(2, 3))
        1.0
    """
    generator = torch.Generator().manual_seed(seed)
    vector = torch.randn(shape, generator=generator, dtype=torch.float64)
    images: list[Tensor] = []
    vectors: list[Tensor] = []
    diagonal: list[float] = []
    beside: list[float] = []
    smallest = math.inf
    for _ in range(min(LANCZOS_STEPS, vector.numel())):
        image = full.multiply(vector)
        scale = float((vector * image).sum().clamp(min=0).sqrt())
        if vectors and scale <= 1e-10:
            break
        beside.append(scale)
        vector, image = vector / scale, image / scale
        vectors.append(vector)
        images.append(image)
        bent = kept.multiply(vector)
        diagonal.append(float((vector * bent).sum()))
        before, smallest = smallest, _smallest(diagonal, beside[1:])
        if before - smallest <= LANCZOS_TOLERANCE * smallest:
            break
        vector = full.apply_inverse(bent)
        for _ in range(2):  # once is not enough in floating point
            for v, v_image in zip(vectors, images, strict=True):
                vector = vector - (vector * v_image).sum() * v
    return smallest


def _smallest(diagonal: list[float], beside: list[float]) -> float:
    """Smallest eigenvalue of a symmetric tridiagonal matrix."""
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    return float(np.linalg.eigvalsh(matrix)[0])


def convex_bound(influence: Influence, pruned: Tensor, penalty: float) -> float:
    """Proved bound on the shift of an L2-regularised convex layer.

    The kept objective is ``penalty``-strongly convex, and its gradient at the old optimum is
    ``sum over S of (g_i - gbar) / (n - m)``, so the new optimum is no farther than that gradient's
    norm over ``penalty``.

    Args:
        influence: Influence of all samples, centred, at the optimum of the full objective.
        pruned: Indices of the pruned samples.
        penalty: The objective adds ``penalty / 2`` times the squared norm, bias included.

    Examples:
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> convex_bound(influence, torch.tensor([0, 1]), penalty=0.1)
        0.0
    """
    gradient = influence.gradient_sum(pruned) / (len(influence) - len(pruned))
    return float(gradient.norm()) / penalty


def loss_bound(bound: float, inputs: Tensor, lipschitz: float) -> float:
    """Proved bound on the change of the mean loss of any given samples.

    Moving the parameters by a matrix of norm b moves a sample's outputs by at most b times the norm
    of its input, and its loss by at most the Lipschitz constant times that.

    Args:
        bound: Bound on the shift of the parameters, such as that of :func:`convex_bound`.
        inputs: Inputs of the layer for the samples, with the one for the bias, shape (t, D).
        lipschitz: Lipschitz constant of the loss in the outputs; sqrt(2) for cross-entropy.

    Examples:
        >>> loss_bound(0.5, torch.tensor([[3.0, 4.0], [0.0, 1.0]]), lipschitz=2.0)
        3.0
    """
    parts = (inputs[k : k + CHUNK] for k in range(0, len(inputs), CHUNK))
    norms = torch.cat([part.double().norm(dim=1) for part in parts])
    return bound * lipschitz * float(norms.mean())


def kept_curvature(
    curvature: Curvature, measurements: Measured, influence: Influence, pruned: Tensor
) -> tuple[Factorised, float | None]:
    """Curvature of the samples that stay, and its share of the full one (`curvature_share`).

    The share is None where every inverse of the full curvature takes many products.

    Args:
        curvature: Factorises the measurements of the samples that stay.
        measurements: Measurements of all samples.
        influence: Influence of all samples.
        pruned: Indices of the pruned samples; without any the curvature is the full one.

    Examples:
        >>> from prunesampler import IdentityCurvature
        >>> from prunesampler.influence.hessians import DiagonalHessian
        >>> from prunesampler.influence.measurements import Measurements
        >>> one = torch.ones(3, 1)
        >>> measured = Measurements(one, one, DiagonalHessian(one), one[:, 0])
        >>> influence = Influence.from_vectors(one)
        >>> kept_curvature(IdentityCurvature(), measured, influence, torch.tensor([0]))[1]
        1.0
    """
    full = influence.factorised
    if not len(pruned):
        return full, 1.0
    kept = curvature.refactorise(measurements.subset(complement(pruned, len(measurements))), full)
    if influence.iterative:
        return kept, None
    return kept, curvature_share(kept, full, measurements.shape)


def random_shift(influence: Influence, size: int, seed: int, draws: int | None = None) -> float:
    """Mean norm of the first-order shifts of random sets, to compare a selection with.

    In a layer of thousands of parameters all random sets of a size shift it by about the same.

    Args:
        influence: Influence of all samples.
        size: Number of samples to prune.
        seed: Seed of the random sets.
        draws: Number of sets to average over; by default 5, and 1 where inverses are iterative.

    Examples:
        >>> influence = Influence.from_vectors(torch.tensor([[1.0], [-1.0], [3.0], [-3.0]]))
        >>> random_shift(influence, 2, seed=0) > 0
        True
    """
    if draws is None:
        draws = 1 if influence.iterative else 5
    rng = np.random.default_rng(seed)
    sets = [rng.choice(len(influence), size, replace=False) for _ in range(draws)]
    return float(np.mean([influence.shift_norm(torch.from_numpy(pruned)) for pruned in sets]))


def random_newton_shift(
    curvature: Curvature, measurements: Measured, influence: Influence, size: int, seed: int
) -> float | None:
    """Norm of the Newton shift of one random set, or None if no sample is to be pruned.

    The set is the first that :func:`random_shift` draws.

    Args:
        curvature: The curvature that the selection uses.
        measurements: Measurements of all samples.
        influence: Influence of all samples.
        size: Number of samples to prune.
        seed: Seed of the random set.

    Examples:
        >>> from prunesampler import IdentityCurvature
        >>> from prunesampler.influence.hessians import DiagonalHessian
        >>> from prunesampler.influence.measurements import Measurements
        >>> one, gradients = torch.ones(2, 1), torch.tensor([[3.0], [-3.0]])
        >>> measured = Measurements(gradients, one, DiagonalHessian(one), one[:, 0])
        >>> influence = Influence.build(measured.rows(), IdentityCurvature().factorise(measured))
        >>> random_newton_shift(IdentityCurvature(), measured, influence, size=1, seed=0)
        3.0
    """
    if not size:
        return None
    n = len(influence)
    pruned = torch.from_numpy(np.random.default_rng(seed).choice(n, size, replace=False))
    kept = curvature.refactorise(measurements.subset(complement(pruned, n)), influence.factorised)
    return influence.norm(newton_shift(kept, influence, pruned))
