"""Pools of training images of which a part is bad, made from good ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from data import Images
from torch import Tensor
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import gaussian_blur


@dataclass(frozen=True)
class Pool:
    """Images, of which the bad are marked (n,), and validation images as the test images are."""

    images: Images
    validation: TensorDataset
    bad: Tensor


def make(images: Images, x: Tensor, y: Tensor, bad: Tensor, classes: int | None = None) -> Pool:
    """A pool of these training samples; test and validation images of the first classes only."""
    test_x, test_y = images.test.tensors
    wanted = test_y < (images.classes if classes is None else classes)
    test_x, test_y = test_x[wanted], test_y[wanted]
    held = torch.arange(len(test_y)) % 10 == 0
    test = TensorDataset(test_x[~held], test_y[~held])
    made = replace(images, train=TensorDataset(x, y), test=test)
    return Pool(made, TensorDataset(test_x[held], test_y[held]), bad)


def stream(seed: int) -> torch.Generator:
    """Random numbers apart from those of training and of random sets."""
    return torch.Generator().manual_seed(10**9 + seed)


def some(count: int, share: float, generator: torch.Generator) -> Tensor:
    """A mask of that share, at random."""
    mask = torch.zeros(count, dtype=torch.bool)
    mask[torch.randperm(count, generator=generator)[: round(share * count)]] = True
    return mask


def wrong_labels(images: Images, seed: int, share: float = 0.2) -> Pool:
    """Labels drawn anew among the other classes."""
    generator = stream(seed)
    x, y = images.train.tensors
    bad = some(len(y), share, generator)
    moved = torch.randint(1, images.classes, (len(y),), generator=generator)
    return make(images, x, torch.where(bad, (y + moved) % images.classes, y), bad)


def near_copies(images: Images, seed: int, share: float = 0.3, copies: int = 10) -> Pool:
    """Copies of a few images, moved by up to two pixels and with a little noise."""
    generator = stream(seed)
    x, y = images.train.tensors
    bad = some(len(y), share, generator)
    count = int(bad.sum())
    good = (~bad).nonzero().flatten()
    few = good[torch.randperm(len(good), generator=generator)[: -(-count // copies)]]
    source = few.repeat_interleave(copies)[:count]
    moved = torch.stack(
        [
            image.roll(tuple(step.tolist()), (1, 2))
            for image, step in zip(
                x[source], torch.randint(-2, 3, (count, 2), generator=generator), strict=True
            )
        ]
    )
    x, y = x.clone(), y.clone()
    x[bad], y[bad] = noisy(moved, 4.0, generator), y[source]
    return make(images, x, y, bad)


def other_classes(images: Images, seed: int) -> Pool:
    """Wanted is the first half of the classes."""
    x, y = images.train.tensors
    wanted = images.classes // 2
    return make(images, x, y, y >= wanted, wanted)


def corrupted(images: Images, seed: int, share: float = 0.5) -> Pool:
    """Blurred and noisy images with their own labels."""
    generator = stream(seed)
    x, y = images.train.tensors
    bad = some(len(y), share, generator)
    x = x.clone()
    x[bad] = noisy(gaussian_blur(x[bad], [5, 5], [1.5, 1.5]), 40.0, generator)
    return make(images, x, y, bad)


def noisy(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Bytes with noise of this standard deviation."""
    noise = deviation * torch.randn(x.shape, generator=generator)
    return (x + noise).round().clamp(0, 255).to(torch.uint8)


POOLS: dict[str, Callable[[Images, int], Pool]] = {
    "wrong labels": wrong_labels,
    "near copies": near_copies,
    "other classes": other_classes,
    "corrupted": corrupted,
}
