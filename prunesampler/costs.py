"""Ready-made prices of pruning a sample, computed from the scores of one pass over the data.

Each function takes the scores and returns one number per sample, float64, shape (n,), for
`prunesampler.Price`: the samples of lowest price are pruned first.

Example:
    >>> from prunesampler import Price
    >>> by_score, beside_the_shift = Price(el2n, shift=False), Price(el2n, weight=0.5)
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prunesampler.influence.hessians import SoftmaxHessian
from prunesampler.influence.influence import loss_distance
from prunesampler.influence.top_rows import TopHessian
from prunesampler.select.objectives import Cost, wanted_loss
from prunesampler.select.scores import Scores

__all__ = [
    "Cost", "el2n", "grand", "influence_norm", "margin", "self_influence", "validation_loss", "wanted_loss",
]  # fmt: skip


def influence_norm(scores: Scores) -> Tensor:
    """Norm of each sample's influence in the metric in use: low for samples that move little.

    Source: the single-sample criterion of Yang et al., ICLR 2023.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> influence_norm(pruner.measure(torch.nn.Linear(4, 3))).shape
        torch.Size([60])
    """
    influence = scores.influence
    return influence.sample_squares().sqrt() / len(influence)


def self_influence(scores: Scores) -> Tensor:
    """``(g_i - gbar)^T H^-1 (g_i - gbar) / n``: how much a sample's own loss rises without it.

    Source: Koh and Liang, "Understanding Black-box Predictions via Influence Functions", ICML 2017.
    High for rare and for mislabelled samples.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> bool((self_influence(pruner.measure(torch.nn.Linear(4, 3))) >= 0).all())
        True
    """
    influence = replace(scores.influence, metric=loss_distance)
    return influence.sample_squares() / len(influence)


def el2n(scores: Scores) -> Tensor:
    """Norm of the loss's gradient by the layer's outputs; with cross-entropy ``||p - y||``.

    Source: Paul et al., "Deep Learning on a Data Diet", NeurIPS 2021, definition 2.2. They average
    it over several networks; here it is computed with one.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> el2n(pruner.measure(torch.nn.Linear(4, 3))).shape
        torch.Size([60])
    """
    return scores.measurements.errors


def grand(scores: Scores) -> Tensor:
    """Norm of the gradient by the layer's parameters: GraNd of the head.

    Source: Paul et al., NeurIPS 2021, definition 2.1, where it is taken by all parameters.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> grand(pruner.measure(torch.nn.Linear(4, 3))).shape
        torch.Size([60])
    """
    return scores.measurements.rows().norms()


def margin(scores: Scores) -> Tensor:
    """Largest probability of another class less that of the sample's own: high for hard samples.

    Raises:
        ValueError: For other losses than cross-entropy on class indices.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> bool((margin(pruner.measure(torch.nn.Linear(4, 3))) <= 1).all())
        True
    """
    hessian = scores.measurements.hessian
    labels = scores.measurements.labels
    if not isinstance(hessian, (SoftmaxHessian, TopHessian)) or labels is None:
        raise ValueError("margin needs cross-entropy on class indices; choose el2n or grand")
    if isinstance(hessian, TopHessian):
        own = hessian.outputs == labels[:, None]
    else:
        own = torch.nn.functional.one_hot(labels, hessian.probabilities.shape[1]).bool()
    probabilities = hessian.probabilities.double()
    others = probabilities.masked_fill(own, -1.0).max(dim=1).values
    difference: Tensor = others - probabilities[own]
    return difference


validation_loss = wanted_loss
"""The name in the literature, where the wanted samples are a validation set."""
