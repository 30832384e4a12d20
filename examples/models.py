"""The two image classifiers of the main job."""

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


def resnet18(channels: int, classes: int) -> nn.Module:
    """Torchvision's ResNet-18 with the stem for small images: 3 x 3, no stride, no pooling."""
    model = torchvision.models.resnet18(num_classes=classes)
    model.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    return model
