"""Labels judged by networks that never saw them: two runs, each on its half of the samples.

A network that trains long enough memorises wrong labels, and then a layer fitted anew on its features is no
independent judge. A network that trained on the other half is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.base.checks import checked_seed, whole_number
from prunesampler.influence.leave_one_out import CHUNK, check_classes, probabilities
from prunesampler.pool.suspects import suspects
from prunesampler.select.findings import Finding
from prunesampler.select.scores import Scores, check_same

DISAGREES = 2.0
"""So many times as probable as the label another class must be, by a network that has not seen it."""


@dataclass(frozen=True, eq=False)
class CrossSplit:
    """Two disjoint halves of a dataset.

    Args:
        first: Indices to train the first network on, int64, ascending; give them to ``sampler.restrict``.
        second: All others, for the second network.
    """

    first: Tensor
    second: Tensor


def cross_split(num_samples: int, seed: int = 0) -> CrossSplit:
    """Split n samples at random into two halves.

    Raises:
        ValueError: For fewer than two samples.

    Examples:
        >>> split = cross_split(5)
        >>> len(split.first), len(split.second), len(set(split.first.tolist() + split.second.tolist()))
        (2, 3, 5)
    """
    if whole_number("num_samples", num_samples) < 2:
        raise ValueError(f"{num_samples} sample cannot be split into two halves")
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(checked_seed(seed)))
    half = num_samples // 2
    return CrossSplit(order[:half].sort().values, order[half:].sort().values)


def suspects_from(
    first: Scores, second: Scores, split: CrossSplit, *, times: float = DISAGREES
) -> Finding:
    """Samples whose label the network that did not see them does not believe.

    Args:
        first: Scores of all n samples by the network that was trained on ``split.first``.
        second: Scores of all n samples by the network that was trained on ``split.second``.
        split: The halves.
        times: How many times as probable as the label another class must be, at least 1. With 1, every
            label goes that is not the likeliest.

    Raises:
        TypeError: If one of them is no scores, as on the ranks where measure returns None.
        ValueError: If the scores are of other samples or classes, the halves are none of a whole, or the loss
            has no classes.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> pruner, split = InfluencePruner(data, budget=Budget(count=9), progress=False), cross_split(60)
        >>> scores = [pruner.measure(torch.nn.Linear(4, 3)) for half in (split.first, split.second)]
        >>> 0 < len(suspects_from(*scores, split)) < 60
        True
    """
    n = len(split.first) + len(split.second)
    if not torch.equal(torch.cat([split.first, split.second]).sort().values, torch.arange(n)):
        raise ValueError(f"the halves share samples or leave some out of {n}; take cross_split(n)")
    for scores in (first, second):
        if not isinstance(scores, Scores):
            raise TypeError(
                f"suspects_from takes the scores that measure returns on rank 0, got {scores!r}"
            )
        check_same(scores, n, first.outline)
    judged = check_classes(second.measurements)
    classes = [check_classes(scores.measurements).hessian.size()[0] for scores in (first, second)]
    if classes[0] != classes[1]:
        raise ValueError(
            f"the first network tells {classes[0]} classes apart and the second {classes[1]}; train both on the same"
        )
    if judged.labels is None:
        raise ValueError(
            "the class of each sample is not known; measure with losses=CrossEntropy()"
        )
    p = _predicted(second)
    p[split.second] = _predicted(first)[split.second]
    indices, sure = suspects(p, judged.labels, times)
    advice = f"another class is {times:g} times as probable, by the network that did not see the sample: train on the rest"
    return Finding(indices, sure, advice)


def _predicted(scores: Scores) -> Tensor:
    """Probability of every class for each sample, float32, shape (n, C)."""
    held = check_classes(scores.measurements)
    starts = range(0, len(held), CHUNK)
    return torch.cat([probabilities(held[k : k + CHUNK]).float() for k in starts])
