"""Objectives: what a good set of samples is.

The energy of a pruned set is the norm of its shift, divided by that of a random set of the same
size, plus the mean cost of its samples. An objective defines the cost of each sample, the norm of
shifts, and whether the shift counts at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from prunesampler.base.checks import checked_cost, dataset_size, warn
from prunesampler.influence.influence import Metric, parameter_distance
from prunesampler.influence.leave_one_out import check_classes
from prunesampler.influence.sequences import Measured
from prunesampler.pool.wanted import UNLABELLED, believed, doubts
from prunesampler.select.scores import Scores

Cost = Callable[[Scores], Tensor]
"""A function from scores to the cost of pruning each sample, shape (n,)."""


class Objective:
    """Defines what a good set is. Your own objective inherits from it and overrides parts.

    Attributes:
        metric: norm of reported shifts, and of the shift that epsilon limits.
        shift: whether the shift counts; otherwise the samples of lowest cost are pruned.
        wanted: further samples, in the form of the scored ones, that are measured for every
            selection because the objective needs them; or None.

    Examples:
        >>> import torch
        >>> class OldestFirst(Objective):
        ...     def __init__(self, years):
        ...         self.years = years
        ...
        ...     def cost(self, scores):
        ...         return standardised(self.years, weight=0.5)
        >>> OldestFirst(torch.tensor([1998.0, 2024.0])).cost(None)
        tensor([-0.3536,  0.3536], dtype=torch.float64)
    """

    metric: Metric = staticmethod(parameter_distance)  # without staticmethod it would be a method
    shift: bool = True
    wanted: Dataset[Any] | None = None

    def __init_subclass__(cls) -> None:
        """Let a subclass set ``metric`` to a plain function, which must not become a method."""
        metric = vars(cls).get("metric")
        if isinstance(metric, FunctionType):
            cls.metric = staticmethod(metric)

    def cost(self, scores: Scores) -> Tensor | None:
        """Cost of pruning each sample, or None if only the shift counts.

        Args:
            scores: Scores of n samples.

        Returns:
            Finite numbers, shape (n,). A mean cost of 1 counts as much as the whole shift of a
            random set; :func:`standardised` brings prices to that unit.
        """
        del scores
        return None

    def check(self, num_samples: int) -> None:
        """Check, before anything is measured, that the objective fits this number of samples."""
        if self.wanted is not None:
            dataset_size(self.wanted)

    def check_measured(self, measurements: Measured) -> None:
        """Check on the first samples that are measured, wanted ones too, that they can be judged."""
        return

    def settings(self) -> list[Any]:
        """Numbers and tensors that must be the same on all processes of a run."""
        return [] if self.wanted is None else [dataset_size(self.wanted)]


@dataclass(frozen=True)
class KeepHead(Objective):
    """Aims at the smallest shift of the scored layer's parameters, as in the paper.

    Args:
        metric: The paper's `parameter_distance`, or `loss_distance`, which does not depend on how
            parameters are scaled. Epsilon and reported shifts are in its units; the set for a
            fraction is the same with both.

    Examples:
        >>> from prunesampler import loss_distance
        >>> KeepHead(metric=loss_distance).shift
        True
    """

    metric: Metric = parameter_distance


@dataclass(frozen=True)
class Price(Objective):
    """Prunes the samples of lowest price: score-based selection, or a price beside the shift.

    Args:
        cost_of: Price of pruning each sample: one number per sample, or a function of the scores,
            such as `prunesampler.costs.el2n`.
        weight: Weight of the price. With 1, a mean price of the pruned samples that is one standard
            deviation higher counts as much as the whole shift of a random set.
        shift: Whether the shift counts too; otherwise the price alone decides.

    Raises:
        ValueError: For a weight below zero or not finite.

    Examples:
        >>> from prunesampler import costs
        >>> Price(costs.el2n, weight=0.5).shift, Price(costs.el2n, shift=False).shift
        (True, False)
    """

    cost_of: Tensor | Sequence[float] | Cost
    weight: float = field(default=1.0, kw_only=True)
    shift: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        _check_weight(self.weight)

    def cost(self, scores: Scores) -> Tensor:
        """The price, standardised and weighted."""
        given = self.cost_of(scores) if callable(self.cost_of) else self.cost_of
        prices = checked_cost(given, len(scores.influence))
        return standardised(prices, weight=self.weight)

    def check(self, num_samples: int) -> None:
        """Check prices that are given as numbers.

        Raises:
            TypeError: If they are not numbers.
            ValueError: If there is not one finite number per sample.
        """
        if not callable(self.cost_of):
            checked_cost(self.cost_of, num_samples)

    def settings(self) -> list[Any]:
        """The weight, whether the shift counts, and the prices if they are numbers."""
        given = None if callable(self.cost_of) else self.cost_of
        return [self.weight, self.shift, given]


@dataclass(frozen=True)
class Target(Objective):
    """Prunes the samples whose labels are believed least, by the wanted samples and by the pool itself.

    Four opinions about a label, standardised and added (`prunesampler.pool.wanted`): those of a layer fitted to
    the wanted samples, of the nearest wanted samples of the label, of the pool's own layer, had it not been
    trained on the sample, and of the nearest neighbours in the pool. Labels that no wanted sample has go
    first. It needs a loss with classes, and
    features that know better than the pool, as those of a pretrained network: those of a network that was
    trained on junk cannot tell it.

    Args:
        wanted: Map-style dataset of samples that are sure, in the form of the scored ones; some tens of each
            class.
        shift: Whether the shift of the layer counts too.

    Raises:
        TypeError: For anything but a map-style dataset.
        ValueError: For an empty dataset.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> good = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
        >>> Target(good).shift
        False
    """

    wanted: Dataset[Any]
    shift: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        dataset_size(self.wanted)

    def cost(self, scores: Scores) -> Tensor:
        """Minus the doubt of each label, standardised."""
        assert scores.wanted is not None
        held = check_classes(scores.measurements)
        found = doubts(held, scores.wanted, believed(held, scores.influence))
        if not found.known:
            warn(
                f"Target judges labels by features that tell the class of only {found.right:.0%} of the wanted samples: "
                "what it keeps may be worse than all; measure with a pretrained network, or keep all"
            )
        return standardised(-found.pool, weight=1.0)

    def check_measured(self, measurements: Measured) -> None:
        """Check that every sample has a class.

        Raises:
            ValueError: If the loss has no classes, or its targets are no class indices.
        """
        if check_classes(measurements).labels is None:
            raise ValueError(f"Target judges labels, and {UNLABELLED}")

    def settings(self) -> list[Any]:
        """The number of wanted samples, and whether the shift counts."""
        return [dataset_size(self.wanted), self.shift]


@dataclass(frozen=True)
class WantedLoss(Objective):
    """Aims at the lowest predicted loss on wanted samples, by influence: a first-order prediction.

    For what a few samples change in a layer that fits. Where a large part of a pool is junk under wanted labels,
    it is worse than using everything, since junk bends the layer by which it is judged: take `Target`.

    Args:
        wanted: Map-style dataset of the samples to do well on, in the form of the scored ones.
        weight: Weight of the predicted loss beside the shift; see :class:`Price`.
        shift: Whether the shift counts too.

    Raises:
        TypeError: For anything but a map-style dataset.
        ValueError: For an empty dataset, or a weight below zero or not finite.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> good = TensorDataset(torch.randn(20, 4), torch.arange(20) % 3)
        >>> WantedLoss(good, shift=False).shift
        False
    """

    wanted: Dataset[Any]
    weight: float = field(default=1.0, kw_only=True)
    shift: bool = field(default=True, kw_only=True)

    def __post_init__(self) -> None:
        dataset_size(self.wanted)
        _check_weight(self.weight)

    def cost(self, scores: Scores) -> Tensor:
        """The predicted change of the wanted samples' loss, standardised and weighted."""
        return standardised(wanted_loss(scores), weight=self.weight)

    def settings(self) -> list[Any]:
        """The number of wanted samples, the weight, and whether the shift counts."""
        return [dataset_size(self.wanted), self.weight, self.shift]


def wanted_loss(scores: Scores) -> Tensor:
    """Predicted change of the wanted samples' mean loss when a sample is removed, to first order.

    ``grad(wanted loss) . s_i`` is negative where removing the sample helps.
    Source: Koh and Liang, ICML 2017, equation 2.

    Raises:
        ValueError: If the scores hold no wanted samples.

    Examples:
        >>> import torch
        >>> from prunesampler import Budget, InfluencePruner, WantedLoss
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), objective=WantedLoss(data[:6]))
        >>> wanted_loss(pruner.measure(torch.nn.Linear(4, 3))).shape
        torch.Size([60])
    """
    if scores.wanted is None:
        raise ValueError(
            "the scores hold no wanted samples to predict the loss of; give the pruner "
            "objective=WantedLoss(wanted), or another objective that names them"
        )
    return scores.influence.effects(scores.wanted.rows().sum() / len(scores.wanted))


def standardised(prices: Tensor, *, weight: float) -> Tensor:
    """Prices minus their mean, in standard deviations, times a weight; float64, shape (n,).

    The result does not depend on the unit of the prices, and is zero when all are equal.

    Examples:
        >>> import torch
        >>> standardised(torch.tensor([1.0, 1.0, 1.0]), weight=0.5).tolist()
        [0.0, 0.0, 0.0]
    """
    prices = prices.double()
    prices = prices / (float(prices.abs().max()) or 1.0)  # squares of huge prices would overflow
    return weight * (prices - prices.mean()) / (float(prices.std()) or 1.0)


def _check_weight(weight: float) -> None:
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be zero or more and finite, got {weight}")
