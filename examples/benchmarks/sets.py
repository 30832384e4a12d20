"""Sets to prune that differ in kind, from the same measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from prunesampler import Budget, anneal, cheapest, costs
from prunesampler.influence.scores import Scores

SETS = ("influence", "random", "keep hard", "keep easy")


def pruned_set(name: str, scores: Scores, fraction: float, seed: int) -> Tensor:
    """Indices to prune; hard and easy are by EL2N."""
    budget = Budget(fraction=fraction)
    if name == "influence":
        return anneal(scores.influence, budget, labels=scores.labels, seed=seed).pruned
    cost = {
        "random": torch.rand(len(scores.influence), generator=torch.Generator().manual_seed(seed)),
        "keep hard": costs.el2n(scores),
        "keep easy": -costs.el2n(scores),
    }[name]
    return cheapest(scores.influence, budget, labels=scores.labels, cost=cost.double()).pruned
