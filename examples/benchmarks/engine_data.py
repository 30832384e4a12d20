"""Measurements for `engine.py`: of synthetic features, of given ones, and of a small network's."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from prunesampler import CrossEntropy
from prunesampler.base.memory import Room
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.top import MANY, kept_outputs
from prunesampler.measure.filling import Filling

LATENT, POWER, FAMILY = 256, 0.6, 20
"""Dimensions behind the synthetic features, how their scales fall, and classes that are alike."""
PART = 4096


def synthetic(
    outputs: int, inputs: int, samples: int, seed: int, spread: float, room: Room
) -> Measurements:
    """Features with a falling spectrum, classes in families, and a head trained on them.

    Args:
        outputs: Number of classes C.
        inputs: Number of features d; the head has a bias too.
        samples: Number of samples n.
        seed: Seed of everything.
        spread: Spread of a class; the larger, the less sure the head is.
        room: Where features and measurements are put.
    """
    draw = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, LATENT + 1) ** -POWER
    families = torch.randn(-(-outputs // FAMILY), LATENT, generator=draw)
    centres = families.repeat_interleave(FAMILY, 0)[:outputs]
    centres = (centres + 0.8 * torch.randn(outputs, LATENT, generator=draw)) * scales
    mix = torch.randn(LATENT, inputs, generator=draw) / LATENT**0.5
    bias = -0.6 * torch.rand(inputs, generator=draw) - 0.1
    labels = torch.randint(0, outputs, (samples,), generator=draw)
    hard = torch.rand(samples, 1, generator=draw)
    precision = torch.float16 if outputs > MANY else torch.float32
    features = room.empty((samples, inputs + 1), precision)
    for part in torch.arange(samples).split(PART):
        noise = torch.randn(len(part), LATENT, generator=draw) * scales
        latent = centres[labels[part]] + spread * (0.5 + hard[part]) * noise
        features[part, :-1] = torch.relu(latent @ mix + bias).to(features.dtype)
    first = features[: 2 * PART, :-1].float()
    size = (300 if inputs < 1000 else 900) ** 0.5 / float(first.square().sum(1).mean() ** 0.5)
    for part in features.split(PART):
        part[:, :-1] *= size
        part[:, -1] = 1.0
    return measured(features, labels, fitted(features, labels, outputs, seed), room)


def fitted(features: Tensor, labels: Tensor, outputs: int, seed: int) -> Tensor:
    """A head as it is after a training: weights of shape (C, D), by Adam with a falling rate."""
    draw = torch.Generator().manual_seed(seed)
    weights = torch.zeros(outputs, features.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weights], 3e-3 if len(features) < 10**6 else 1e-3)
    batches = [
        batch
        for _ in range(max(1, 400_000 // len(features)))
        for batch in torch.randperm(len(features), generator=draw).split(512)
    ]
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(batches))
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            logits = features[batch].float() @ weights.T
        loss = F.cross_entropy(logits.float(), labels[batch]) + 5e-5 * weights.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return weights.detach()


def measured(features: Tensor, labels: Tensor, weights: Tensor, room: Room) -> Measurements:
    """What a pass over the data would measure of this head."""
    filling = Filling(len(labels), room)
    for part in torch.arange(len(labels)).split(PART):
        inputs = features[part]
        losses, delta, hessian = CrossEntropy().derivatives(
            inputs.float() @ weights.T, labels[part]
        )
        thin = kept_outputs(Measurements(delta, inputs[:, -1:], hessian, losses, labels[part]))
        filling.add(thin)
    whole = filling.measurements()
    return whole.with_tensors({**whole.tensors(), "inputs": features})


def given(path: Path, penalty: float) -> Measurements:
    """Features from a safetensors file (``train``, ``train_labels``) and a head at its optimum."""
    held = load_file(path)
    features, labels = held["train"].float(), held["train_labels"].long()
    features = 8 * (features - features.mean(0)) / features.std(0).clamp(min=1e-3)
    features = F.pad(features / features.shape[1] ** 0.5, (0, 1), value=1.0)
    weights = torch.zeros(int(labels.max()) + 1, features.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(features @ weights.T, labels)
        value = value + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return measured(features, labels, weights.detach(), Room())


def small_network(folder: Path, inputs: int, epochs: int, seed: int) -> Measurements:
    """A small network on CIFAR-10 whose classes are ten clusters within each class."""
    torch.manual_seed(seed)
    dataset = ImageFolder(str(folder / "train"))
    images = torch.stack([pil_to_tensor(image) for image, _ in dataset])
    labels = torch.tensor(dataset.targets)
    clusters = clusters_within(labels, trained(images, labels, 64, max(2, epochs // 4))[0], seed)
    features, weights = trained(images, clusters, inputs, epochs)
    return measured(features, clusters, weights, Room())


def clusters_within(labels: Tensor, features: Tensor, seed: int) -> Tensor:
    """Ten clusters of each class by Lloyd's iteration, as classes of their own."""
    draw, found = torch.Generator().manual_seed(seed), torch.zeros_like(labels)
    features = F.normalize(features[:, :-1] - features[:, :-1].mean(0), dim=1)
    for label in range(int(labels.max()) + 1):
        own = (labels == label).nonzero().flatten()
        rows = features[own]
        centres = rows[torch.randperm(len(own), generator=draw)[:10]]
        for _ in range(50):
            nearest = torch.cdist(rows, centres).argmin(1)
            centres = torch.stack([rows[nearest == k].mean(0) for k in range(10)])
        found[own] = 10 * label + nearest
    return found


def trained(images: Tensor, labels: Tensor, inputs: int, epochs: int) -> tuple[Tensor, Tensor]:
    """Features with a one, (n, inputs + 1), and the head's weights, of a small network trained here."""
    classes = int(labels.max()) + 1
    body = nn.Sequential(
        *_step(3, 32, 3, 2), *_step(32, 64, 3, 1), *_step(64, 64, 3, 2), *_step(64, 128, 3, 2),
        *_step(128, 128, 3, 1), *_step(128, inputs, 1, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    net = nn.Sequential(body, nn.Linear(inputs, classes)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    steps = epochs * (len(images) // 128)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(128)[: len(images) // 128]:
            pixels = _scaled(images[batch])
            pixels = pixels.flip(3) if torch.rand(()) < 0.5 else pixels
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(pixels)
            loss = F.cross_entropy(logits.float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            falling.step()
    net.eval()
    with torch.inference_mode():
        features = torch.cat([body(_scaled(part)) for part in images.split(512)])
    head = net[1]
    weights = torch.cat([head.weight, head.bias[:, None]], 1).detach()
    return F.pad(features, (0, 1), value=1.0).clone(), weights


def _step(channels: int, wider: int, size: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, wider, size, stride, size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(wider), nn.ReLU()]


def _scaled(images: Tensor) -> Tensor:
    return ((images.float() - 120.0) / 64.0).contiguous(memory_format=torch.channels_last)
