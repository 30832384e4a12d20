"""Images of which a known part is bad: another label than they should have, or junk under wanted labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from data import Images
from torch import Tensor
from torch.utils.data import TensorDataset

SURE = 50
"""Samples of each wanted class that are sure, beside a pool with junk."""


@dataclass(frozen=True)
class Spoiled:
    """Images of which some are bad.

    Args:
        images: As they are trained on.
        bad: Which training images are bad, boolean, shape (n,).
        wanted: Indices of training images that are known to be good, int64; empty where none is.
        source: Place of each training image among those that the pool was made from, int64, shape (n,).
        features: What a network that was trained on other images sees of each, shape (n, D), or None.
    """

    images: Images
    bad: Tensor
    wanted: Tensor
    source: Tensor
    features: Tensor | None = None

    def only(self, kept: Tensor) -> Images:
        """Some of the training images."""
        return replace(self.images, train=TensorDataset(*self.images.train[kept]))

    def sure(self) -> TensorDataset:
        """The images that are known to be good."""
        return TensorDataset(*self.images.train[self.wanted])

    def looked_at(self, features: Tensor) -> Spoiled:
        """The same with features, of which there is a row for each image that the pool was made from."""
        return replace(self, features=features[self.source])

    def seen(self) -> Spoiled:
        """The same pool with features in place of images."""
        assert self.features is not None
        held = TensorDataset(self.features, self.images.train.tensors[1])
        return replace(self, images=replace(self.images, train=held))


def wrong_labels(images: Images, share: float, seed: int) -> Spoiled:
    """Draw a share of the labels anew among the other classes; nothing is known to be good."""
    draw = torch.Generator().manual_seed(seed)
    x, y = images.train.tensors
    wrong = torch.rand(len(x), generator=draw) < share
    other = (y + torch.randint(1, images.classes, (len(x),), generator=draw)) % images.classes
    made = replace(images, train=TensorDataset(x, torch.where(wrong, other, y)))
    return Spoiled(made, wrong, torch.empty(0, dtype=torch.int64), torch.arange(len(x)))


def junk(images: Images, share: float, seed: int) -> Spoiled:
    """Half of the classes are wanted; so large a share is of the others, under wanted labels; some are sure.

    The sure ones come last. All junk is used, and so many good samples that the share is right, or all good
    ones and less junk.
    """
    draw = torch.Generator().manual_seed(seed)
    wanted = torch.randperm(images.classes, generator=draw)[: images.classes // 2].sort().values
    number = torch.full((images.classes,), -1).scatter(0, wanted, torch.arange(len(wanted)))
    x, y = images.train.tensors
    order = torch.randperm(len(y), generator=draw)
    good, others = order[number[y[order]] >= 0], order[number[y[order]] < 0]
    sure = torch.cat([good[y[good] == k][: min(SURE, len(good) // 20)] for k in wanted])
    good = good[~torch.isin(good, sure)]
    size = min(len(good) / (1 - share), len(others) / share)
    good, others = good[: round((1 - share) * size)], others[: round(share * size)]
    drawn = torch.randint(0, len(wanted), (len(others),), generator=draw)
    chosen = torch.cat([good, others, sure])
    labels = torch.cat([number[y[good]], drawn, number[y[sure]]])
    test_x, test_y = images.test.tensors
    known = number[test_y] >= 0
    made = replace(
        images, train=TensorDataset(x[chosen], labels), classes=len(wanted),
        test=TensorDataset(test_x[known], number[test_y[known]]),
    )  # fmt: skip
    bad = torch.zeros(len(chosen), dtype=torch.bool)
    bad[len(good) : len(good) + len(others)] = True
    return Spoiled(made, bad, torch.arange(len(good) + len(others), len(chosen)), chosen)


POOLS: dict[str, Callable[[Images, float, int], Spoiled]] = {
    "wrong labels": wrong_labels,
    "junk": junk,
}
