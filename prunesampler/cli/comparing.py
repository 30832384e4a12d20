"""Two files of one kind held against each other, and against what chance would give."""

from __future__ import annotations

import math
from functools import singledispatch

import torch
from torch import Tensor

from prunesampler.cli.facts import of
from prunesampler.influence.headroom import headroom
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.select.verdict import percent
from prunesampler.train.trajectory import Trajectory

Row = tuple[str, str, str]
"""What is compared, what was found, and what two random ones would give."""


@singledispatch
def compared(a: object, b: object) -> list[Row]:
    """What two selections, scores or trajectories of the same samples have in common.

    Args:
        a: One of them.
        b: Another of the same kind.

    Raises:
        TypeError: If they are something else.
        ValueError: If they are of other samples.

    Examples:
        >>> from prunesampler import Budget
        >>> one, other = (
        ...     Selection(torch.tensor(gone), 4, 0.1, 0.1, None, Budget(count=2)) for gone in ([0, 1], [0, 2])
        ... )
        >>> compared(one, other)[-1]
        ('agreement', '2 (50 %)', '2 (50 %)')
    """
    raise TypeError(f"nothing is known of {type(a).__name__} and {type(b).__name__}")


@compared.register
def _selections(a: Selection, b: Selection) -> list[Row]:
    n = _same(a.num_samples, b.num_samples)
    first, second = n - len(a.pruned), n - len(b.pruned)
    either = torch.cat([a.pruned, b.pruned]).unique()  # type: ignore[no-untyped-call]
    both = n - len(either)
    by_chance = first * second / n
    rows = {
        "kept by both": (both, by_chance),
        "kept by A only": (first - both, first - by_chance),
        "kept by B only": (second - both, second - by_chance),
        "kept by neither": (n - first - second + both, n - first - second + by_chance),
        "agreement": (n - first - second + 2 * both, n - first - second + 2 * by_chance),
    }
    told = [
        ("samples", f"{n:,}", ""),
        ("kept by A", of(first, n), ""),
        ("kept by B", of(second, n), ""),
    ]
    return told + [(name, of(found, n), of(chance, n)) for name, (found, chance) in rows.items()]


@compared.register
def _scores(a: Scores, b: Scores) -> list[Row]:
    n = _same(len(a), len(b))
    if None not in (a.outline, b.outline) and a.outline != b.outline:
        raise ValueError(
            f"both are of {n} samples, but of two datasets: labels or shapes of the samples looked at differ"
        )
    rows = [("samples", f"{n:,}", ""), *_losses(a, b)]
    if a.labels is not None and b.labels is not None and len(a.labels) == len(b.labels):
        rows.append(("other labels", of(int((a.labels != b.labels).sum()), n), ""))
    return rows + _errors(a.measurements.errors, b.measurements.errors)


@compared.register
def _trajectories(a: Trajectory, b: Trajectory) -> list[Row]:
    n = _same(a.num_samples, b.num_samples)
    rows = [
        ("samples", f"{n:,}", ""),
        ("epochs of A", str(len(a)), ""),
        ("epochs of B", str(len(b)), ""),
    ]
    return rows + _errors(a.last_seen(), b.last_seen())


def _same(first: int, second: int) -> int:
    """The number of samples of both.

    Raises:
        ValueError: If there are two.
    """
    if first != second:
        raise ValueError(f"A is of {first} samples and B of {second}: they are of two datasets")
    return first


def _losses(a: Scores, b: Scores) -> list[Row]:
    means = [float(scores.measurements.losses.double().mean()) for scores in (a, b)]
    return [
        (f"mean loss of {name}", f"{mean:.4g}", "") for name, mean in zip("AB", means, strict=True)
    ]


def _errors(a: Tensor, b: Tensor) -> list[Row]:
    """Headroom of both, and how alike the orders of the samples are that both know."""
    found = {name: headroom(x) for name, x in (("A", a), ("B", b))}
    rooms = [
        (f"headroom of {name}", "unknown" if math.isnan(share) else f"{share:.2f}", "")
        for name, share in found.items()
    ]
    known = ~(a.isnan() | b.isnan())
    a, b = a[known], b[known]
    if len(a) < 2:
        return [*rooms, ("known of both", f"{len(a)} samples", "")]
    half = len(a) // 2
    hard = [set(x.argsort(descending=True, stable=True)[:half].tolist()) for x in (a, b)]
    common = len(hard[0] & hard[1]) / half
    return [
        *rooms,
        ("correlation of the errors' ranks", f"{rank_correlation(a, b):.2f}", "0.00"),
        ("hardest half in common", percent(common), percent(half / len(a))),
    ]


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation; equal values share their mean rank. NaN where all values are equal.

    Args:
        a: Numbers, shape (n,).
        b: As many.

    Examples:
        >>> rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 30.0, 20.0]))
        0.5
    """
    ranks = torch.stack([_ranks(a), _ranks(b)])
    centred = ranks - ranks.mean(1, keepdim=True)
    product, (one, other) = centred[0] @ centred[1], centred.norm(dim=1)
    return round(float(product / (one * other)), 12)


def _ranks(x: Tensor) -> Tensor:
    _, places, counts = x.unique(return_inverse=True, return_counts=True)  # type: ignore[no-untyped-call]
    ends = counts.cumsum(0).double()
    found: Tensor = (ends - (counts - 1) / 2)[places]
    return found
