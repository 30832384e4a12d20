"""The image datasets of the main job, in memory as bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.transforms.v2.functional import center_crop, pil_to_tensor, resize


@dataclass(frozen=True)
class Images:
    """Training and test images, uint8 (n, channels, height, width), with their classes.

    Args:
        padding: pixels by which a training image may be moved in each direction.
        mirrored: whether a training image may be flipped left to right.
    """

    train: TensorDataset
    test: TensorDataset
    classes: int
    padding: int
    mirrored: bool

    @property
    def channels(self) -> int:
        return self.train.tensors[0].shape[1]

    def augment(self, images: Tensor) -> Tensor:
        """Move and flip every image of a batch by chance."""
        count, _, height, width = images.shape
        padded = F.pad(images, [self.padding] * 4)
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        down, right = torch.randint(2 * self.padding + 1, (2, count), device=images.device)
        moved = windows[torch.arange(count, device=images.device), :, down, right]
        if not self.mirrored:
            return moved
        flip = torch.rand(count, 1, 1, 1, device=images.device) < 0.5
        return torch.where(flip, moved.flip(3), moved)

    def first(self, count: int) -> Images:
        """The same with a random subset of the training images, always the same one."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))[:count]
        train = TensorDataset(*self.train[chosen])
        return Images(train, self.test, self.classes, self.padding, self.mirrored)


class Normalise(nn.Module):
    """From bytes to numbers of mean 0 and variance 1 per channel, over the given images."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        values = images[:10_000].float()
        self.register_buffer("mean", values.mean((0, 2, 3)).view(-1, 1, 1))
        self.register_buffer("deviation", values.std((0, 2, 3)).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() - self.mean) / self.deviation


def digits() -> Images:
    """Scikit-learn's 1,797 handwritten digits of 8 x 8 pixels; every fourth is a test image."""
    x, y = load_digits(return_X_y=True)
    images = torch.from_numpy((x.reshape(-1, 1, 8, 8) * 15).astype(np.uint8))
    labels = torch.from_numpy(y)
    test = torch.arange(len(labels)) % 4 == 0
    return Images(
        TensorDataset(images[~test], labels[~test]),
        TensorDataset(images[test], labels[test]),
        classes=10, padding=1, mirrored=False,
    )  # fmt: skip


def cifar10(directory: Path) -> Images:
    """CIFAR-10 through torchvision, downloaded into the directory if it is not there."""
    try:
        parts = [
            torchvision.datasets.CIFAR10(directory, train, download=True) for train in (True, False)
        ]
    except (OSError, RuntimeError) as error:
        raise SystemExit(
            f"CIFAR-10 is not in {directory}, and downloading it failed: {error}. Unpack "
            "cifar-10-python.tar.gz (https://www.cs.toronto.edu/~kriz/cifar.html) there, so that it "
            f"holds {directory / 'cifar-10-batches-py'}; or train on images of your own with "
            "--dataset imagefolder, or on --dataset digits, which needs no files"
        ) from error
    train, test = (
        TensorDataset(
            torch.from_numpy(p.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(p.targets)
        )
        for p in parts
    )
    return Images(train, test, classes=10, padding=4, mirrored=True)


def imagefolder(directory: Path, size: int) -> Images:
    """``train/CLASS/*`` and ``test/CLASS/*``, resized and cropped to squares."""
    for part in ("train", "test"):
        if not (directory / part).is_dir():
            raise SystemExit(
                f"{directory / part} is not a folder: --data-dir must hold train/CLASS/*.jpg and "
                "test/CLASS/*.jpg; --dataset cifar10 downloads CIFAR-10 there instead"
            )

    def read(part: str) -> tuple[TensorDataset, list[str]]:
        folder = torchvision.datasets.ImageFolder(
            directory / part, lambda image: center_crop(resize(pil_to_tensor(image), size), size)
        )
        images = torch.stack([image for image, _ in folder])
        return TensorDataset(images, torch.tensor(folder.targets)), folder.classes

    (train, classes), (test, test_classes) = read("train"), read("test")
    if classes != test_classes:
        raise SystemExit(f"train and test have other classes: {set(classes) ^ set(test_classes)}")
    return Images(train, test, len(classes), padding=size // 8, mirrored=True)
