"""Frozen features: train a small ResNet for a few epochs, then write down what its last layer sees.

    python examples/features.py --data-dir CIFAR --output features.safetensors

CIFAR holds train/CLASS/* and test/CLASS/*. Without --data-dir the images are scikit-learn's digits.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Images, Normalise, digits, imagefolder
from models import small_resnet
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm.auto import tqdm

BATCH = 128


@dataclass(frozen=True)
class Features:
    """What a linear layer is trained on: features (n, d) and classes (n,), of training and test."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def save(self, path: Path) -> None:
        save_file({k: v.contiguous() for k, v in vars(self).items()}, path)

    @staticmethod
    def load(path: Path) -> Features:
        return Features(**load_file(path))


def train_features(images: Images, width: int, epochs: int, stride: int, seed: int) -> Features:
    """Features of all images after some epochs of training on the training images."""
    torch.manual_seed(seed)
    normalise = Normalise(images.train.tensors[0])
    model = small_resnet(images.channels, images.classes, width, stride)
    x, y = images.train.tensors
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    steps = epochs * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    with tqdm(total=steps, desc="training the features") as bar:
        for _ in range(epochs):
            for chosen in torch.randperm(len(x)).split(BATCH)[: len(x) // BATCH]:
                outputs = model(normalise(images.augment(x[chosen])))
                optimizer.zero_grad()
                F.cross_entropy(outputs, y[chosen]).backward()
                optimizer.step()
                schedule.step()
                bar.update()
    return Features(
        x=read_features(model, normalise, x), y=y,
        test_x=read_features(model, normalise, images.test.tensors[0]), test_y=images.test.tensors[1],
    )  # fmt: skip


def read_features(model: nn.Sequential, normalise: Normalise, x: Tensor) -> Tensor:
    model.eval()
    with torch.inference_mode():
        return torch.cat([model[:-1](normalise(part)) for part in x.split(500)])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="train/CLASS/* and test/CLASS/*")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--width", type=int, default=64, help="features per image")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    found = imagefolder(given.data_dir, given.image_size) if given.data_dir else digits()
    stride = 2 if given.data_dir else 1
    train_features(found, given.width, given.epochs, stride, given.seed).save(given.output)
