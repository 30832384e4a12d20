"""What neighbours say of a label: those in the pool, by their own labels, and the wanted samples of that label.

Layers judge by planes; neighbours also see a class that lies in several places. Each function returns how little
the label is believed, of the pool's samples and of the wanted ones, each without itself.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS, SHARE = 100, 40
"""Neighbours in the pool that are asked at most, and at most one in so many samples."""
ASKED = 8192
"""Samples of the pool among which they are looked for, so that time grows with the pool's size only. They are drawn
at random: evenly spaced ones would be of one class where the classes take turns."""
NEAREST = 5
"""Wanted samples of the label that are looked at."""
TILE = 4096
"""Samples that are looked at together."""


def by_pool(pool: Tensor, labels: Tensor, wanted: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """``-log((s + 1) / (k + C))``, where s of the k nearest neighbours in the pool have the label, of C classes.

    Args:
        pool: Features of n samples, centred, shape (n, D).
        labels: Their classes, int64, shape (n,).
        wanted: Features of m wanted samples, shape (m, D).
        sure: Their classes, int64, shape (m,).

    Returns:
        Of the pool, shape (n,), and of the wanted samples, shape (m,), float64.

    Examples:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [-1.0, 0.0], [-0.9, 0.1]]).repeat(20, 1)
        >>> labels = torch.tensor([0, 0, 1, 1]).repeat(20)
        >>> labels[0] = 1
        >>> doubt, _ = by_pool(x, labels, x[:2], labels[:2])
        >>> int(doubt.argmax())
        0
    """
    x, z = _directions(pool), _directions(wanted)
    draw = torch.Generator().manual_seed(0)
    asked = torch.randperm(len(x), generator=draw)[:ASKED]
    some, theirs = x[asked], labels[asked]
    count = min(NEIGHBOURS, max(1, len(asked) // SHARE))
    classes = 1 + int(torch.cat([labels, sure]).max())

    def doubt(rows: Tensor, given: Tensor, own: Tensor) -> Tensor:
        cosines = (rows @ some.T).masked_fill(own[:, None] == asked, -torch.inf)
        nearest = theirs[cosines.topk(count, dim=1).indices]
        same = (nearest == given[:, None]).sum(1).double()
        return -((same + 1) / (count + classes)).log()

    return _tiled(doubt, x, labels, torch.arange(len(x))), _tiled(doubt, z, sure, _nobody(z))


def by_wanted(pool: Tensor, labels: Tensor, wanted: Tensor, sure: Tensor) -> tuple[Tensor, Tensor]:
    """Minus the mean cosine to the nearest wanted samples of the label; 1 where there is none.

    Args:
        pool: Features of n samples, centred, shape (n, D).
        labels: Their classes, int64, shape (n,).
        wanted: Features of m wanted samples, shape (m, D).
        sure: Their classes, int64, shape (m,).

    Returns:
        Of the pool, shape (n,), and of the wanted samples, shape (m,), float64.

    Examples:
        >>> wanted, sure = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
        >>> doubt, of_wanted = by_wanted(wanted, torch.tensor([0, 0]), wanted, sure)
        >>> doubt.tolist(), of_wanted.tolist()
        ([-1.0, 1.0], [1.0, 1.0])
    """
    x, z = _directions(pool), _directions(wanted)
    places = torch.arange(len(z))

    def doubt(rows: Tensor, given: Tensor, own: Tensor) -> Tensor:
        other = (given[:, None] != sure) | (own[:, None] == places)
        cosines = (rows @ z.T).masked_fill(other, -2.0)
        nearest = cosines.topk(min(NEAREST, len(z)), dim=1).values
        known = nearest.where(nearest >= -1.5, torch.nan)
        return -known.nanmean(1).nan_to_num(-1.0).double()

    return _tiled(doubt, x, labels, _nobody(x)), _tiled(doubt, z, sure, places)


def _tiled(
    doubt: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor, given: Tensor, own: Tensor
) -> Tensor:
    """The doubts of all rows, of some at a time."""
    parts = [slice(start, start + TILE) for start in range(0, len(rows), TILE)]
    return torch.cat([doubt(rows[part], given[part], own[part]) for part in parts])


def _nobody(rows: Tensor) -> Tensor:
    """A place for each row that no sample has, where none of those looked at is the row itself."""
    return torch.full((len(rows),), -1)


def _directions(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)
