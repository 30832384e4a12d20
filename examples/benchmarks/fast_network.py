"""The network of the fast trainer, and the views of its images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images

PATCH = 2
"""Pixels on a side that the first layer sees at once."""
LOGITS = 0.25
"""Outputs begin small, so that the first steps are not taken by the last layer alone."""


def network(images: Images, width: float) -> nn.Sequential:
    """Eight layers: a whitened stem, three pairs of convolutions, a linear layer."""
    stem = whitening(images.train.tensors[0])
    layers: list[nn.Module] = [Normalise(images.train.tensors[0]), stem, nn.ReLU()]
    before = stem.out_channels
    small = images.train.tensors[0].shape[-1] < 16  # else nothing is left of them
    for count in channels(width):
        layers += [
            convolution(before, count), nn.MaxPool2d(2, ceil_mode=small), nn.BatchNorm2d(count), nn.ReLU(),
            convolution(count, count), nn.BatchNorm2d(count), nn.ReLU(),
        ]  # fmt: skip
        before = count
    head = nn.Linear(before, images.classes)
    with torch.no_grad():
        head.weight.mul_(LOGITS)
    made = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), head)
    return made.to(memory_format=torch.channels_last)


def channels(width: float) -> list[int]:
    """Of the three pairs of convolutions."""
    return [16 * max(1, round(count * width / 16)) for count in (64, 256, 256)]


def convolution(before: int, after: int) -> nn.Conv2d:
    """It begins as the identity where it can, so that short runs need not learn that."""
    made = nn.Conv2d(before, after, 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.dirac_(made.weight[: min(before, after)])
    return made


class Normalise(nn.Module):
    """From bytes to numbers of mean 0 and variance 1."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        values = images[:5000].float()
        self.mean, self.deviation = float(values.mean()), float(values.std())

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.deviation


def whitening(images: Tensor) -> nn.Conv2d:
    """A frozen layer whose outputs are uncorrelated on small patches, each in either sign."""
    values = Normalise(images)(images[:5000])
    patches = F.unfold(values, PATCH).transpose(1, 2).reshape(-1, PATCH**2 * values.shape[1])
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    rows = (directions / (variances + 5e-4).sqrt()).T
    made = nn.Conv2d(values.shape[1], 2 * len(rows), PATCH, bias=False)
    made.weight = nn.Parameter(
        torch.cat([rows, -rows]).view(made.weight.shape), requires_grad=False
    )
    return made


def optimiser(model: nn.Module, lr: float, steps: int, decay: float) -> tuple[torch.optim.SGD, Any]:
    """SGD whose learning rate rises over a fifth of the steps and falls to zero; offsets learn faster."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    offsets = {module.bias for module in norms}
    others = [p for p in model.parameters() if p.requires_grad and p not in offsets]
    groups = [
        {"params": others, "lr": lr, "weight_decay": decay},
        {"params": list(offsets), "lr": FASTER * lr, "weight_decay": decay / FASTER},
    ]
    made = torch.optim.SGD(groups, momentum=MOMENTUM, nesterov=True)
    rise = WARM_UP * steps

    def factor(step: int) -> float:
        return min((step + 1) / rise, (steps - step) / (steps - rise))

    return made, torch.optim.lr_scheduler.LambdaLR(made, factor)


FASTER, MOMENTUM, WARM_UP = 8.0, 0.9, 0.2


class Views:
    """Moves images by chance, and mirrors each one at every second visit, or by chance.

    Visits are counted, not epochs: a sample that sits out every second epoch would else be seen in one
    of its two views only.
    """

    def __init__(self, images: Images, alternate: bool = True) -> None:
        x, self.y = images.train.tensors
        # Channels last, as the convolutions want them, and so that a pixel is one place in memory.
        self.x = x.permute(0, 2, 3, 1).contiguous()
        self._mirrored, self._alternate = images.mirrored, alternate
        self._padding = (images.padding + 1) // 2
        self._visits = torch.randint(2, (len(x),), dtype=torch.uint8)
        self._rows = self._reflected(x.shape[2])
        self._columns = self._reflected(x.shape[3])

    def _reflected(self, size: int) -> Tensor:
        """Positions of the pixels of a row with its edges mirrored outward."""
        places = torch.arange(-self._padding, size + self._padding).abs()
        return torch.where(places < size, places, 2 * (size - 1) - places)

    def of(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        """Images and classes of a batch."""
        height, width = self.x.shape[1:3]
        rows, columns = torch.randint(2 * self._padding + 1, (2, len(picked), 1))
        rows = self._rows[rows + torch.arange(height)]
        columns = self._columns[columns + torch.arange(width)]
        if self._mirrored:
            chance = torch.randint(2, (len(picked),))
            flip = (self._visits[picked] % 2 if self._alternate else chance) == 1
            self._visits[picked] += 1
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        x = self.x[picked[:, None, None], rows[:, :, None], columns[:, None]]
        return x.permute(0, 3, 1, 2), self.y[picked]
