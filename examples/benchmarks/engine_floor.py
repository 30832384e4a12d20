"""How small a shift any set could have, counted for `engine.py` from the spectrum of the curvature."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunesampler.influence.measurements import Measurements

LANCZOS, PROBES, UNLIKELY = 80, 2, 0.01
"""Steps and random vectors for the spectrum of the curvature, and the chance that is left to the floor."""


class Floor:
    """The share of a random set's shift that no set goes below, were gradients normal. It is no proof.

    Relaxed to shares between 0 and 1, the problem has the answer 0, with m / n of every sample, so the
    relaxation bounds nothing. This counts sets instead. If the gradients were drawn from a normal law with
    the curvature G as covariance, the squared norm of one set's shift would be a sum of ``mu_k z_k^2``, with
    standard normal z and mu the eigenvalues of ``H^-1 G H^-1``. The chance that such a sum is below a
    share r^2 of its mean is at most ``exp(t r^2 sum mu) / prod sqrt(1 + 2 t mu)`` for every t. Times the
    number of sets, that bounds the chance that any set is below r. Here it is 1 %.

    Real gradients are no such draw: where most of them are nearly zero, fewer sets count, and what can be had
    is worse than this; where samples cancel each other exactly, it may be better.

    Args:
        measured: Measurements of n samples.
        damping: Added to the curvature.
        count: Number m of samples in a set.
    """

    def __init__(self, measured: Measurements, damping: float, count: int) -> None:
        self.measured, self.damping, n = measured, damping, len(measured)
        sets = math.lgamma(n + 1) - math.lgamma(count + 1) - math.lgamma(n - count + 1)
        self.exponent = sets - math.log(UNLIKELY)
        probes = [self._probe(seed) for seed in range(PROBES)]
        self.values, self.weights = (torch.cat(part) for part in zip(*probes, strict=True))

    def _probe(self, seed: int) -> tuple[Tensor, Tensor]:
        """Eigenvalues of the curvature, and how many each stands for, by Lanczos from a random vector."""
        shape, draw = self.measured.shape, torch.Generator().manual_seed(seed)
        basis = torch.randn(1, *shape, generator=draw, dtype=torch.float64)
        basis /= basis.norm()
        steps = min(LANCZOS, self.measured.parameters)
        small = torch.zeros(steps, steps, dtype=torch.float64)
        for step in range(steps):
            image = self.measured.curvature_product(basis[-1])
            for _ in range(2):  # once is not enough in floating point
                along = torch.einsum("kcd,cd->k", basis, image)
                image = image - torch.einsum("k,kcd->cd", along, basis)
                small[step, : step + 1] += along
            if step + 1 == steps or image.norm() < 1e-12 * small[0, 0]:  # nothing is left to see
                break
            basis = torch.cat([basis, (image / image.norm())[None]])
        # eigh reads the lower triangle, which alone is filled.
        values, vectors = torch.linalg.eigh(small[: len(basis), : len(basis)])
        return values.clamp(min=0), vectors[0].square() * self.measured.parameters / PROBES

    def share(self, power: int) -> float:
        """In the parameters (power 2) or in units of the loss (power 1)."""
        mu = self.values / (self.values + self.damping) ** power
        low, high = -100.0, 100.0  # of the logarithm of t; what is left of the chance falls with t
        for _ in range(100):
            t = math.exp((low + high) / 2)
            within = self.weights * mu / (1 + 2 * t * mu)
            left = t * within.sum() - (self.weights * torch.log1p(2 * t * mu)).sum() / 2
            low, high = (math.log(t), high) if left + self.exponent > 0 else (low, math.log(t))
        return math.sqrt(float(within.sum() / (self.weights * mu).sum()))
