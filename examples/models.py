"""Image classifiers of the main job and of the benchmarks."""

from __future__ import annotations

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3 x 3 convolutions with a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


def small_resnet(channels: int, classes: int, features: int = 64, stride: int = 1) -> nn.Sequential:
    """A ResNet of 8 layers, small enough to train on a CPU; stride 2 makes it 4 times as fast."""
    widen = [nn.Conv2d(64, features, 1, bias=False), nn.BatchNorm2d(features), nn.ReLU()]
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Block(16, 16, 1),
        Block(16, 32, 2),
        Block(32, 64, 2),
        *(widen if features != 64 else []),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def resnet18(channels: int, classes: int) -> nn.Sequential:
    """Torchvision's ResNet-18 with the stem for small images: 3 x 3, no stride, no pooling."""
    model = torchvision.models.resnet18()
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    model.maxpool, model.fc = nn.Identity(), nn.Identity()
    return nn.Sequential(model, nn.Linear(512, classes))


def tiny_resnet(channels: int, classes: int) -> nn.Sequential:
    """A quarter of the small one's work: for benchmarks of many runs on a CPU."""
    return small_resnet(channels, classes, stride=2)


class Residual(nn.Module):
    """What is inside, added to what goes in."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inside(x)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def plain_cnn(channels: int, classes: int) -> nn.Sequential:
    """Three convolutions without shortcuts: another architecture, as fast as the tiny ResNet."""
    return nn.Sequential(
        convolution(channels, 32, 2),
        convolution(32, 64, 2),
        convolution(64, 128, 2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(128, classes),
    )


def resnet9(channels: int, classes: int) -> nn.Sequential:
    """A shallow, wide ResNet, meant to reach over 90 % on CIFAR-10 within a minute of a GPU."""
    return nn.Sequential(
        convolution(channels, 64),
        convolution(64, 128),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(convolution(128, 128), convolution(128, 128))),
        convolution(128, 256),
        nn.MaxPool2d(2),
        convolution(256, 512),
        nn.MaxPool2d(2),
        Residual(nn.Sequential(convolution(512, 512), convolution(512, 512))),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(512, classes),
    )


def convmixer(channels: int, classes: int, width: int = 64, depth: int = 2) -> nn.Sequential:
    """Patches of 4 x 4 pixels, mixed in space and then over channels (Trockman and Kolter, 2022)."""
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width)),
        *(_mixer(width) for _ in range(depth)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, classes),
    )


def _mixer(width: int) -> nn.Sequential:
    space = [nn.Conv2d(width, width, 3, 1, 1, groups=width), nn.GELU(), nn.BatchNorm2d(width)]
    return nn.Sequential(
        Residual(nn.Sequential(*space)),
        nn.Conv2d(width, width, 1),
        nn.GELU(),
        nn.BatchNorm2d(width),
    )
