"""Frozen features, and pools of them of which a part is bad, made from good ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import TensorDataset

COMPONENTS = 128
COPIES = 8
"""Copies of each sample that is copied."""
NOISE = 0.05
"""Noise of a copy, as a share of each feature's standard deviation."""
SKEW = 50
"""Samples of the largest class for each one of the smallest."""


@dataclass(frozen=True)
class Features:
    """Training and test samples, shapes (n, D) and (m, D), and their classes."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def classes(self) -> int:
        return int(self.y.max()) + 1


@dataclass(frozen=True)
class Sizes:
    """Samples of a pool, and wanted samples beside it."""

    pool: int
    wanted: int


@dataclass(frozen=True)
class Pool:
    """A pool of n samples, some wanted ones that are sure, and test samples as the wanted ones are.

    Args:
        x: Features, shape (n, D).
        y: Labels, shape (n,).
        bad: Which samples are junk or have a wrong label, shape (n,).
        source: The sample of which each is a copy, or itself, shape (n,).
        prune: How many a method prunes that needs a number.
        classes: Outputs of the head.
        wanted: The wanted samples.
        test: The test samples.
    """

    x: Tensor
    y: Tensor
    bad: Tensor
    source: Tensor
    prune: int
    classes: int
    wanted: TensorDataset
    test: TensorDataset

    def __len__(self) -> int:
        return len(self.y)

    @property
    def data(self) -> TensorDataset:
        return TensorDataset(self.x, self.y)

    def good(self) -> Tensor:
        """Which samples one would keep, knowing all."""
        return ~self.bad & (self.source == torch.arange(len(self)))

    def bad_of(self, kept: Tensor) -> int:
        """How many of these are bad; of copies all but one, whichever it is."""
        sources = self.source[kept].unique()
        return int(self.bad[sources].sum()) + len(kept) - len(sources)


def load(path: Path | None) -> Features:
    """The features of the file, or else the pixels of scikit-learn's digits."""
    if path is not None:
        held = load_file(path)
        return principal(held["train"], held["train_labels"], held["test"], held["test_labels"])
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(digits.data)[order], torch.tensor(digits.target)[order]
    return principal(x[300:], y[300:], x[:300], y[:300])


def principal(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> Features:
    """The leading principal components, of mean standard deviation one."""
    mean = x.float().mean(0)
    held = x.float() - mean
    _, vectors = torch.linalg.eigh(held.T @ held / len(held))
    basis = vectors[:, -COMPONENTS:]
    scale = (held @ basis).std(0).mean()
    return Features(held @ basis / scale, y, (test_x.float() - mean) @ basis / scale, test_y)


class Drawing:
    """Draws a pool's samples from the features; the first classes of its own numbering are the wanted ones."""

    def __init__(self, features: Features, sizes: Sizes, seed: int) -> None:
        self.features, self.sizes = features, sizes
        self.generator = torch.Generator().manual_seed(10**9 + seed)  # apart from random sets
        number = torch.randperm(features.classes, generator=self.generator)
        self.labels, self.test_labels = number[features.y], number[features.test_y]

    def among(self, mask: Tensor) -> Tensor:
        """The samples of the mask in random order."""
        found = mask.nonzero()[:, 0]
        return found[torch.randperm(len(found), generator=self.generator)]

    def pool(
        self,
        good: Tensor,
        bad_x: Tensor,
        bad_y: Tensor,
        *,
        copied: Tensor | None = None,
        tested: int | None = None,
        prune: int | None = None,
    ) -> Pool:
        """The wanted samples, then the good ones, then the bad, the latter two shuffled.

        Args:
            good: Samples, those to want first.
            bad_x: Features of the bad.
            bad_y: Labels of the bad.
            copied: Of which good sample of the pool each of the bad is a copy, if they are.
            tested: Number of classes that are tested, or None for all.
            prune: How many to prune; by default as many as are bad.
        """
        held, w, count = self.features, self.sizes.wanted, len(bad_y)
        wanted, rest = good[:w], good[w : w + self.sizes.pool - count]
        n = len(rest) + count
        if len(wanted) < w or (tested and n < self.sizes.pool):
            raise SystemExit(f"there are too few samples for {self.sizes}; choose smaller ones")
        source, bad = torch.arange(n), torch.arange(n) >= len(rest)
        if copied is not None:
            source[len(rest) :], bad = copied, torch.zeros(n, dtype=torch.bool)
        order = torch.randperm(n, generator=self.generator)
        x = torch.cat([held.x[rest], bad_x])[order]
        y = torch.cat([self.labels[rest], bad_y])[order]
        test = self.test_labels < (held.classes if tested is None else tested)
        return Pool(
            x, y, bad[order], order.argsort()[source][order], count if prune is None else prune,
            int(y.max()) + 1, TensorDataset(held.x[wanted], self.labels[wanted]),
            TensorDataset(held.test_x[test], self.test_labels[test]),
        )  # fmt: skip

    def everything(self) -> Tensor:
        return self.among(self.labels >= 0)


def junk(drawing: Drawing, share: float) -> Pool:
    """Half of the classes, and samples of the others under random labels of these."""
    wanted, count = drawing.features.classes // 2, round(share * drawing.sizes.pool)
    good, bad = (drawing.among(mask) for mask in _halves(drawing, wanted))
    labels = torch.randint(wanted, (count,), generator=drawing.generator)
    return drawing.pool(good, drawing.features.x[bad[:count]], labels, tested=wanted)


def lacking(drawing: Drawing, share: float) -> Pool:
    """Half of the classes, and samples of the others under their own labels."""
    wanted, count = drawing.features.classes // 2, round(share * drawing.sizes.pool)
    good, bad = (drawing.among(mask) for mask in _halves(drawing, wanted))
    bad = bad[:count]
    return drawing.pool(good, drawing.features.x[bad], drawing.labels[bad], tested=wanted)


def _halves(drawing: Drawing, wanted: int) -> tuple[Tensor, Tensor]:
    return drawing.labels < wanted, drawing.labels >= wanted


def wrong_labels(drawing: Drawing, share: float) -> Pool:
    """All classes; labels drawn anew among the other classes."""
    order, count = drawing.everything(), round(share * drawing.sizes.pool)
    classes, bad = drawing.features.classes, order[:count]
    moved = torch.randint(1, classes, (count,), generator=drawing.generator)
    labels = (drawing.labels[bad] + moved) % classes
    return drawing.pool(order[count:], drawing.features.x[bad], labels)


def near_copies(drawing: Drawing, share: float, noise: float) -> Pool:
    """All classes; copies of a few samples of the pool, with noise."""
    x, count = drawing.features.x, round(share * drawing.sizes.pool)
    order, start = drawing.everything(), drawing.sizes.wanted
    copied = torch.arange(-(-count // COPIES)).repeat_interleave(COPIES)[:count]
    bad = order[start + copied]
    moved = torch.randn(count, x.shape[1], generator=drawing.generator) * x.std(0)
    return drawing.pool(order, x[bad] + noise * moved, drawing.labels[bad], copied=copied)


def long_tail(drawing: Drawing) -> Pool:
    """All classes, each smaller than the one before by the same factor; nothing is bad, half is pruned."""
    counts = torch.bincount(drawing.labels)
    shares = SKEW ** (-torch.arange(len(counts)) / (len(counts) - 1))
    total = drawing.sizes.pool + drawing.sizes.wanted
    largest = min(total / float(shares.sum()), float((counts / shares).min()))
    order = drawing.everything()
    labels, sizes = drawing.labels[order], (largest * shares).round().long()
    parts = [order[labels == k][: int(size)] for k, size in enumerate(sizes)]
    some = torch.cat(parts)
    some = some[torch.randperm(len(some), generator=drawing.generator)]
    pruned = (len(some) - drawing.sizes.wanted) // 2
    return drawing.pool(some, *_none(drawing), prune=pruned)


def clean(drawing: Drawing) -> Pool:
    """All classes; nothing is bad, and a fifth is pruned."""
    return drawing.pool(
        drawing.everything(), *_none(drawing), prune=round(0.2 * drawing.sizes.pool)
    )


def _none(drawing: Drawing) -> tuple[Tensor, Tensor]:
    return drawing.features.x[:0], drawing.labels[:0]


POOLS: dict[str, Callable[[Drawing], Pool]] = {
    "junk 20 %": partial(junk, share=0.2),
    "junk 50 %": partial(junk, share=0.5),
    "junk 80 %": partial(junk, share=0.8),
    "other labels 50 %": partial(lacking, share=0.5),
    "wrong labels 20 %": partial(wrong_labels, share=0.2),
    "wrong labels 40 %": partial(wrong_labels, share=0.4),
    "near copies 30 %": partial(near_copies, share=0.3, noise=NOISE),
    "long tail 50:1": long_tail,
    "clean": clean,
}
