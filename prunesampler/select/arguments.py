"""Checks that the objects given to the pruner are of the right kind."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from prunesampler.influence.influence import Influence
from prunesampler.influence.states import class_labels
from prunesampler.select.objectives import Objective
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.problem import Problem


def check_objects(
    budget: object, losses: object, curvature: object, solver: object, objective: object
) -> None:
    """Check the kinds of the pruner's arguments; refuse classes, names and torch's own losses.

    Raises:
        TypeError: If an argument is of another kind; None is accepted for all but ``budget`` and
            ``objective``.

    Examples:
        >>> from prunesampler import ExactCurvature, KeepHead
        >>> check_objects(Budget(count=2), None, ExactCurvature(), None, KeepHead())
    """
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, such as Budget(fraction=0.4), got {budget!r}")
    home = getattr(losses, "__module__", None) or ""
    if losses is not None and (
        not callable(losses) or isinstance(losses, (type, nn.Module)) or home.startswith("torch.nn")
    ):
        raise TypeError(
            f"losses must be a function (model, batch) -> one loss per sample, got {losses!r}; use "
            "CrossEntropy(), TokenCrossEntropy(), BinaryCrossEntropy() or SquaredError() of prunesampler, "
            "or your own"
        )
    needed = ("factorise", "check", "refactorise", "keep")
    whole = all(hasattr(curvature, name) for name in needed)
    if curvature is not None and (isinstance(curvature, type) or not whole):
        raise TypeError(
            f"curvature must be an object such as ExactCurvature(), got {curvature!r}; one of your own "
            "inherits from prunesampler.influence.curvature.Curvature"
        )
    if solver is not None and not callable(solver):
        raise TypeError(f"solver must be a function such as prunesampler.anneal, got {solver!r}")
    if not isinstance(objective, Objective):
        raise TypeError(
            f"objective must be an object such as KeepHead(), Target(wanted) or Price(prices), got "
            f"{objective!r}; one of your own inherits from prunesampler.Objective"
        )


def check_can_be_met(
    budget: Budget, num_samples: int, labels: Tensor | None, constraints: Constraints | None
) -> None:
    """Check before anything is measured that a budget can be met, as far as classes are given.

    Args:
        budget: How much to prune.
        num_samples: Number of samples n.
        labels: Class of every sample, int64, shape (n,), or None to learn them in measuring.
        constraints: Samples that must stay or go, or None.

    Raises:
        ValueError: If floors or constraints contradict it, or each other.

    Examples:
        >>> check_can_be_met(Budget(count=5, min_per_class=3), 6, torch.arange(6) % 2, None)
        Traceback (most recent call last):
        ValueError: the budget prunes 5 of 6 samples, but min_per_class=3 keeps 6 in 2 classes, which ...
    """
    if labels is None:
        budget = replace(budget, min_per_class=0, proportional=False, per_class=None)
    nothing = Influence.from_vectors(torch.zeros(num_samples, 1))
    Problem.of(nothing, budget, class_labels(labels, num_samples), constraints).count()
