"""One fast trainer of small images on one processor core: what is compared is which samples it sees.

A convolutional network with a frozen, whitened stem, a triangular schedule, label smoothing,
flips that alternate, and all images in memory. Batches come from an `InfluencePrunedSampler`, errors are
recorded in the training passes, and a `TrajectoryPruner` chooses the samples of each epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images

from prunesampler import Budget, InfluencePrunedSampler
from prunesampler.train.hardest import TrajectoryPruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory

WARM_UP, MOMENTUM, WEIGHT_DECAY, SMOOTHING = 0.2, 0.9, 1e-3, 0.2


@dataclass(frozen=True)
class Plan:
    """How one run trains.

    Args:
        epochs: Number of epochs on all data whose steps the run takes.
        lr: Peak of the learning rate.
        width: Of the network, 1 is 64, 128 and 256 channels.
        stem: Leading directions of the patches that the first layer has, each in either sign. A narrow
            network spends most of its time there.
        by: Whose errors choose: "all" leaves out nothing, "random" draws, "proxy" and "own" keep the
            hardest by a recorded run and by this one.
        keep: Share of the samples that an epoch has.
        mix: Share of the kept that is drawn at random.
        first: Number of epochs on all data at the beginning.
        last: Number of epochs on all data at the end.
        half: Whether layers compute in bfloat16. Where the processor has no tiles for it (AMX), that is
            slower: an epoch took 27 seconds for 18.
    """

    epochs: int
    lr: float
    width: float = 1.0
    stem: int = 24
    seed: int = 0
    by: str = "all"
    keep: float = 1.0
    mix: float = 0.0
    first: int = 0
    last: int = 0
    batch_size: int = 500
    half: bool = False

    def epochs_of(self, size: int) -> list[tuple[bool, int]]:
        """For each epoch whether it chooses, and its number of steps, for so many training images."""
        whole = size // self.batch_size
        if self.by == "all":
            return [(False, whole)] * self.epochs
        first = max(self.first, self.by == "own")  # nothing is recorded before the first epoch
        left = (self.epochs - first - self.last) * whole
        part = self.kept(size) // self.batch_size
        chosen = [part] * (left // part) + ([left % part] if left % part else [])
        return (
            [(False, whole)] * first
            + [(True, steps) for steps in chosen]
            + [(False, whole)] * self.last
        )

    def kept(self, size: int) -> int:
        """Number of samples that an epoch keeps."""
        return round(self.keep * size)


@dataclass
class Run:
    """What a run came to; seconds are the processor's, and hold choosing and recording."""

    accuracy: float
    seconds: float
    choosing: float
    steps: int
    epochs: int
    headrooms: list[float]
    trajectory: Trajectory


def network(images: Images, width: float, stem: int) -> nn.Sequential:
    """Seven layers: a whitened stem of stride two, three pairs of convolutions, a linear layer."""
    patches = whitening(images.train.tensors[0], stem)
    layers: list[nn.Module] = [Normalise(images.train.tensors[0]), patches, nn.ReLU()]
    before = patches.out_channels
    for count in channels(width):
        layers += [
            convolution(before, count), nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(count),
            nn.ReLU(inplace=True),
            convolution(count, count), nn.BatchNorm2d(count), nn.ReLU(inplace=True),
        ]  # fmt: skip
        before = count
    layers += [nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(before, images.classes)]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


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


def whitening(images: Tensor, stem: int) -> nn.Conv2d:
    """A frozen layer whose outputs are uncorrelated on patches of four by four pixels."""
    values = Normalise(images)(images[:5000])
    patches = F.unfold(values, 4, stride=3).transpose(1, 2).reshape(-1, 16 * values.shape[1])
    variances, directions = torch.linalg.eigh(patches.T @ patches / len(patches))
    count = min(stem, len(variances))
    rows = (directions / (variances + 1e-2).sqrt()).T.flip(0)[:count]
    made = nn.Conv2d(values.shape[1], 2 * count, 4, stride=2, padding=1, bias=False)
    made.weight = nn.Parameter(
        torch.cat([rows, -rows]).view(made.weight.shape), requires_grad=False
    )
    return made


class Views:
    """Moves images by chance, and mirrors each one at every second visit.

    Visits are counted, not epochs: a sample that sits out every second epoch would else be seen in one
    of its two views only.
    """

    def __init__(self, images: Images) -> None:
        x, self.y = images.train.tensors
        # Channels last, as the convolutions want them, and so that a pixel is one place in memory.
        self.x = x.permute(0, 2, 3, 1).contiguous()
        self._mirrored = images.mirrored
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
            flip = self._visits[picked] % 2 == 1
            self._visits[picked] += 1
            columns = torch.where(flip[:, None], columns.flip(1), columns)
        x = self.x[picked[:, None, None], rows[:, :, None], columns[:, None]]
        return x.permute(0, 3, 1, 2), self.y[picked]


def chooser(plan: Plan, size: int, source: Trajectory | TrajectoryRecorder) -> Callable[[int], Any]:
    """What an epoch keeps."""
    if plan.by == "random":
        draw = torch.Generator().manual_seed(plan.seed)
        return lambda epoch: torch.randperm(size, generator=draw)[: plan.kept(size)]
    pruner = TrajectoryPruner(
        source, budget=Budget(count=size - plan.kept(size)), epochs=len(plan.epochs_of(size)),
        mix=plan.mix, seed=plan.seed,
    )  # fmt: skip
    return lambda epoch: pruner.choose(epoch, nn.Identity())


def train(images: Images, plan: Plan, recorded: Trajectory | None = None) -> Run:
    """Train by a plan; the accuracy on the test images is taken outside of the clock."""
    began = time.process_time()
    torch.manual_seed(plan.seed)
    views, size, model = Views(images), len(images.train), network(images, plan.width, plan.stem)
    sampler = InfluencePrunedSampler(range(size), seed=plan.seed)
    loader = DataLoader(range(size), plan.batch_size, sampler=sampler, drop_last=True)  # type: ignore[arg-type]
    recorder = TrajectoryRecorder(sampler, loader, model)
    epochs = plan.epochs_of(size)
    choose = chooser(plan, size, recorded or recorder) if plan.by != "all" else None
    optimizer, schedule = optimiser(model, plan.lr, sum(steps for _, steps in epochs))
    choosing = 0.0
    for epoch, (chooses, steps) in enumerate(epochs):
        started = time.process_time()
        if chooses and choose:
            sampler.restrict(choose(epoch))
        else:
            sampler.reset()
        sampler.set_epoch(epoch)
        choosing += time.process_time() - started
        for _, picked in zip(range(steps), loader, strict=False):
            x, y = views.of(picked)
            loss = F.cross_entropy(logits(model, x, plan.half), y, label_smoothing=SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        recorder.on_epoch_end()
    seconds = time.process_time() - began
    found = recorder.trajectory
    return Run(
        accuracy(model, images.test, plan.half), seconds, choosing, sum(steps for _, steps in epochs),
        len(epochs), found.headrooms(), found,
    )  # fmt: skip


def optimiser(model: nn.Module, lr: float, steps: int) -> tuple[torch.optim.SGD, Any]:
    """SGD with a learning rate that rises over a fifth of the steps and falls to zero."""
    trained = [p for p in model.parameters() if p.requires_grad]
    made = torch.optim.SGD(trained, lr, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True)
    rise = WARM_UP * steps

    def factor(step: int) -> float:
        return min((step + 1) / rise, (steps - step) / (steps - rise))

    return made, torch.optim.lr_scheduler.LambdaLR(made, factor)


def logits(model: nn.Module, x: Tensor, half: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return model(x).float()


def accuracy(model: nn.Module, test: TensorDataset, half: bool) -> float:
    """Share of the test images that are classified right."""
    model.eval()
    with torch.inference_mode():
        right = [
            int((logits(model, x, half).argmax(1) == y).sum())
            for x, y in zip(*(t.split(1000) for t in test.tensors), strict=True)
        ]
    return sum(right) / len(test)


def cost_of_recording(images: Images, plan: Plan) -> float:
    """Seconds that recording adds to an epoch: passes through a last layer alone, with and without it."""
    size, batch_size = len(images.train), plan.batch_size

    def seconds(records: bool) -> float:
        sampler = InfluencePrunedSampler(range(size))
        loader = DataLoader(range(size), batch_size, sampler=sampler, drop_last=True)  # type: ignore[arg-type]
        head = nn.Linear(channels(plan.width)[-1], images.classes)
        x, y = torch.randn(batch_size, head.in_features), images.train.tensors[1][:batch_size]
        recorder = TrajectoryRecorder(sampler, loader, head) if records else None
        started = time.process_time()
        for _ in loader:
            F.cross_entropy(logits(head, x, plan.half), y, label_smoothing=SMOOTHING).backward()
        if recorder:
            recorder.on_epoch_end()
        return time.process_time() - started

    return median(seconds(True) - seconds(False) for _ in range(5))


def channels(width: float) -> list[int]:
    """Of the three pairs of convolutions."""
    return [16 * max(1, round(count * width / 16)) for count in (64, 128, 256)]
