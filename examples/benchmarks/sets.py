"""Sets to prune that differ in kind, from the same measurements."""

from __future__ import annotations

import torch
from torch import Tensor

from prunesampler import Budget, anneal, costs
from prunesampler.select.scores import Scores
from prunesampler.solve.problem import Problem
from prunesampler.solve.solvers import cheapest

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
    problem = Problem.of(scores.influence, budget, scores.labels, cost=cost.double())
    return cheapest(problem, seed=0).pruned
