"""What a set of pruned samples does to the parameters: predicted and proved."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from prunesampler.curvature import Curvature
from prunesampler.influence import Influence
from prunesampler.samples import SampleGradients


def newton_shift(
    kept: SampleGradients, influence: Influence, curvature: Curvature, pruned: Tensor
) -> Tensor:
    """Change of the parameters by one Newton step on the kept samples, shape (K, D), float64.

    ``H_kept^-1 sum over S of (g_i - gbar) / (n - m)``: the first-order shift with the curvature of
    the kept samples. Exact for a quadratic loss; for cross-entropy it repairs most of what first
    order misses (Koh et al., "On the Accuracy of Influence Functions for Measuring Group Effects",
    NeurIPS 2019, compare both).

    Args:
        kept: the measured samples that stay.
        influence: of all samples.
        curvature: how to factorise; an approximate curvature gives an approximate step.
        pruned: indices of the samples that go.
    """
    factor = curvature.factor(kept, influence.factor.damping)
    return factor.solve(influence.gradient_sum(pruned)) / len(kept)


def convex_bound(influence: Influence, pruned: Tensor, penalty: float) -> float:
    """Proved bound on the shift of an L2-regularised convex layer.

    The kept objective is ``penalty``-strongly convex, and its gradient at the old optimum is
    ``sum over S of (g_i - gbar) / (n - m)``, so the new optimum is no farther than that gradient's
    norm over ``penalty``.

    Args:
        influence: of all samples, centred, at the optimum of the full objective.
        pruned: indices that go.
        penalty: the objective holds ``penalty / 2`` times the squared norm, bias included.
    """
    gradient = influence.gradient_sum(pruned) / (len(influence) - len(pruned))
    return float(gradient.norm()) / penalty


def random_shift(influence: Influence, size: int, seed: int, draws: int = 5) -> float:
    """Mean first-order shift norm of random sets: what a selection is to be held against.

    Args:
        influence: of all samples.
        size: samples to prune.
        seed: of the draws.
        draws: sets to average over.
    """
    rng = np.random.default_rng(seed)
    sets = [rng.choice(len(influence), size, replace=False) for _ in range(draws)]
    return float(np.mean([influence.shift_norm(torch.from_numpy(pruned)) for pruned in sets]))
