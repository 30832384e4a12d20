"""One training run of the accuracy benchmarks: data in the device's memory, a plain loop, a method.

A method decides before each epoch which samples it trains on and how much each counts. All methods
take as many optimiser steps; what a method spends on choosing counts as time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from data import Images, Normalise
from torch import Tensor, nn
from torch.utils.data import TensorDataset


@dataclass(frozen=True)
class Recipe:
    """How every method trains.

    Args:
        epochs: of the run on all data.
        warmup_epochs: on all data, before a method chooses for the first time.
        fraction: of the samples to prune.

    Raises:
        SystemExit: when nothing would be pruned.
    """

    epochs: int
    warmup_epochs: int
    fraction: float
    batch_size: int = 128
    lr: float = 0.1
    weight_decay: float = 5e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_epochs < self.epochs:
            raise SystemExit(
                f"warmup_epochs must be less than the {self.epochs} epochs, got "
                f"{self.warmup_epochs}: nothing would be pruned"
            )

    def keep(self, size: int) -> int:
        """How many of so many samples are kept."""
        return size - round(self.fraction * size)

    def full_steps(self, size: int) -> int:
        """Optimiser steps of the run on all of so many samples."""
        return self.epochs * self.steps(size)

    def pruned_steps(self, size: int) -> int:
        """Optimiser steps of a run that is pruned after the warm-up."""
        rest = self.epochs - self.warmup_epochs
        return self.warmup_epochs * self.steps(size) + rest * self.steps(self.keep(size))

    def steps(self, samples: int) -> int:
        """Of an epoch: whole batches only, unless there is none."""
        return max(1, samples // self.batch_size)


class Progress:
    """What a method may look at: the training data, the model, and what training has seen.

    ``losses`` are of the last time that a sample was trained on, ``right`` says whether it was
    classified right then, ``forgotten`` counts how often it was right and next time wrong.
    """

    def __init__(self, images: Images, recipe: Recipe, model: nn.Module, steps: int) -> None:
        self.images, self.recipe, self.model, self.steps_left = images, recipe, model, steps
        self.epoch, self.size = 0, len(images.train)
        self.keep = recipe.keep(self.size)
        self.device = next(model.parameters()).device
        self.losses = torch.full((self.size,), torch.inf, device=self.device)
        self.right = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        self.forgotten = torch.zeros(self.size, device=self.device)

    def generator(self) -> torch.Generator:
        """Random numbers of this seed and epoch."""
        return torch.Generator().manual_seed(1000 * self.recipe.seed + self.epoch)

    def remember(self, indices: Tensor, losses: Tensor, right: Tensor) -> None:
        self.losses[indices] = losses
        self.forgotten[indices] += self.right[indices] & ~right
        self.right[indices] = right


class Method(Protocol):
    """Chooses before each epoch after the warm-up."""

    def __call__(self, progress: Progress) -> tuple[Tensor, Tensor | None]:
        """Indices for the coming epoch, and a weight for each or None."""


@dataclass
class Outcome:
    """What a run came to."""

    accuracy: float
    steps: int
    samples: int
    seconds: float
    choosing_seconds: float
    kept: Tensor
    model: nn.Sequential


def clock(device: torch.device) -> float:
    """Seconds: on a CPU those of the processor, so that other work does not count, else of the wall.

    They are those of the wall too if there is one thread: set OMP_NUM_THREADS=1.
    """
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def half_precision(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16)


def train(
    images: Images, network: nn.Sequential, recipe: Recipe, method: Method, steps: int,
    device: torch.device,
) -> Outcome:  # fmt: skip
    """Train for so many steps; the accuracy on the test images is taken outside of the clock."""
    torch.manual_seed(recipe.seed)
    x, y = (t.to(device) for t in images.train.tensors)
    model = network.to(device, memory_format=torch.channels_last).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    # The schedule moves the momentum too, between 0.85 and 0.95.
    optimizer = torch.optim.SGD(
        trained, recipe.lr, 0.9, weight_decay=recipe.weight_decay, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=steps)
    progress = Progress(images, recipe, model, steps)
    samples, seconds, choosing = 0, 0.0, 0.0
    chosen = torch.arange(progress.size)
    while progress.steps_left:
        started, weights = clock(device), None
        if progress.epoch >= recipe.warmup_epochs:
            chosen, weights = method(progress)
        choosing += clock(device) - started
        order = torch.randperm(len(chosen), generator=progress.generator())
        # A last batch of a few samples upsets BatchNorm: it cost two points where 8 were left.
        left = min(progress.steps_left, recipe.steps(len(chosen)))
        for part in order.split(recipe.batch_size)[:left]:
            picked = chosen[part].to(device)
            counts = None if weights is None else weights[part].to(device)
            losses, right = _losses(model, images.augment(x[picked]), y[picked])
            optimizer.zero_grad()
            (losses if counts is None else losses * counts).mean().backward()
            optimizer.step()
            schedule.step()
            progress.remember(picked, losses.detach(), right)
            progress.steps_left -= 1
            samples += len(part)
        seconds += clock(device) - started
        progress.epoch += 1
    right = accuracy(model, images.test, device)
    return Outcome(right, steps, samples, seconds, choosing, chosen, model)


def _losses(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """One loss per sample, and which are classified right."""
    with half_precision(x.device):
        logits = model(x)
    return F.cross_entropy(logits.float(), y, reduction="none"), logits.argmax(1) == y


def head_inputs(model: nn.Sequential, x: Tensor) -> Tensor:
    """What the last layer of a network of :func:`fresh` sees of images, on the CPU."""
    normalise, network = model.eval()
    device = next(model.parameters()).device
    with torch.inference_mode():
        return torch.cat([network[:-1](normalise(p.to(device))).cpu() for p in x.split(500)])


def accuracy(model: nn.Module, test: TensorDataset, device: torch.device) -> float:
    """Share of the test images that are classified right."""
    model.eval()
    right = 0
    with torch.inference_mode(), half_precision(device):
        for x, y in zip(*(t.split(1000) for t in test.tensors), strict=True):
            right += int((model(x.to(device)).argmax(1).cpu() == y).sum())
    model.train()
    return right / len(test)


def fresh(images: Images, build: Callable[[int, int], nn.Module], seed: int) -> nn.Sequential:
    """A new network of this seed, with the images' normalisation before it."""
    torch.manual_seed(seed)
    normalise = Normalise(images.train.tensors[0])
    return nn.Sequential(normalise, build(images.channels, images.classes))
