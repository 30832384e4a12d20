"""One fast trainer of small images on one processor core: what is compared is which samples it sees.

A triangular schedule, label smoothing, flips that alternate, all images in memory, and the network of
`fast_network`. Batches come from an `InfluencePrunedSampler`, errors are recorded in the training passes, and
a `TrajectoryPruner`, or a rival, chooses the samples of each epoch.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images
from fast_network import Views, channels, network, optimiser

from prunesampler import Budget, ExactCurvature, InfluencePrunedSampler, InfluencePruner, Price
from prunesampler.base.indices import complement
from prunesampler.train.hardest import TrajectoryPruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory

WEIGHT_DECAY = 1e-3
OWN = ("own", "infobatch", "balanced")
Choice = tuple[Tensor, Tensor | None]
"""Indices to keep, and the weight of every sample's loss."""


@dataclass(frozen=True)
class Plan:
    """How one run trains.

    Args:
        epochs: Number of epochs on all data whose steps the run takes.
        lr: Peak of the learning rate.
        width: Of the network, 1 is 64, 256 and 256 channels.
        by: What chooses. "all" leaves out nothing and "random" draws; "proxy" and "own" keep the
            hardest by a recorded run and by this one; "infobatch" drops at random among those of small error
            and gives the rest of those more weight; "balanced" keeps a set that pulls at the head as all
            do, with the errors as a price.
        keep: Share of the samples that an epoch has.
        mix: Share of the kept that is drawn at random.
        first: Number of epochs on all data at the beginning.
        last: Number of epochs on all data at the end.
        smoothing: Share of each target that is spread over all classes.
        alternate: Whether each image is mirrored at every second visit, or by chance.
        half: Whether layers compute in bfloat16: twice as fast with AVX-512 bf16, slower without it.
    """

    epochs: int
    lr: float
    width: float = 1.0
    seed: int = 0
    by: str = "all"
    keep: float = 1.0
    mix: float = 0.0
    first: int = 0
    last: int = 0
    batch_size: int = 500
    smoothing: float = 0.2
    alternate: bool = True
    half: bool = False

    def epochs_of(self, size: int) -> list[tuple[bool, int]]:
        """For each epoch whether it chooses, and its number of steps, for so many training images."""
        whole = size // self.batch_size
        if self.by == "all":
            return [(False, whole)] * self.epochs
        first = max(self.first, self.by in OWN)  # nothing is recorded before the first epoch
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
    model: nn.Module


def chooser(
    plan: Plan,
    images: Images,
    model: nn.Module,
    source: Trajectory | TrajectoryRecorder,
    losses: Tensor,
) -> Callable[[int], Choice]:
    """What an epoch keeps; the losses are those that each sample had when it was last seen."""
    size = len(images.train)
    budget, draw = Budget(count=size - plan.kept(size)), torch.Generator().manual_seed(plan.seed)

    def redrawn(epoch: int) -> Choice:
        return torch.randperm(size, generator=draw)[: plan.kept(size)], None

    def infobatch(epoch: int) -> Choice:
        """Source: Qin et al., ICLR 2024; but as many go as the others leave out."""
        easy = (losses < losses.mean()).nonzero()[:, 0]
        gone = easy[torch.randperm(len(easy), generator=draw)[: budget.count]]
        weights = torch.ones(size)
        weights[easy] = len(easy) / (len(easy) - len(gone))
        return complement(gone.sort().values, size), weights

    def balanced(epoch: int) -> Choice:
        assert isinstance(source, TrajectoryRecorder)
        errors = source.trajectory.last_seen()
        price = Price(errors.nan_to_num(float(errors[~errors.isnan()].max())))
        pruner = InfluencePruner(
            images.train, budget=budget, objective=price, batch_size=1000, progress=False, seed=epoch,
            curvature=ExactCurvature(damping=WEIGHT_DECAY),
        )  # fmt: skip
        return pruner.choose(epoch, model).kept, None

    if plan.by in ("proxy", "own"):
        epochs = len(plan.epochs_of(size))
        pruner = TrajectoryPruner(
            source, budget=budget, epochs=epochs, mix=plan.mix, seed=plan.seed
        )
        return lambda epoch: (pruner.choose(epoch, model).kept, None)
    return {"random": redrawn, "infobatch": infobatch, "balanced": balanced}[plan.by]


def train(images: Images, plan: Plan, recorded: Trajectory | None = None) -> Run:
    """Train by a plan; the accuracy on the test images is taken outside of the clock."""
    began = time.process_time()
    torch.manual_seed(plan.seed)
    views, model = Views(images, plan.alternate), network(images, plan.width)
    size, weights = len(images.train), None
    seen = torch.full((size,), 3.0)  # what was not seen yet counts as hard
    sampler = InfluencePrunedSampler(range(size), seed=plan.seed)
    loader = DataLoader(range(size), plan.batch_size, sampler=sampler, drop_last=True)  # type: ignore[arg-type]
    recorder = TrajectoryRecorder(sampler, loader, model)
    epochs = plan.epochs_of(size)
    choose = chooser(plan, images, model, recorded or recorder, seen) if plan.by != "all" else None
    optimizer, schedule = optimiser(model, plan.lr, sum(steps for _, steps in epochs), WEIGHT_DECAY)
    choosing = 0.0
    for epoch, (chooses, steps) in enumerate(epochs):
        started = time.process_time()
        if chooses and choose:
            kept, weights = choose(epoch)
            sampler.restrict(kept)
        else:
            sampler.reset()
            weights = None
        sampler.set_epoch(epoch)
        choosing += time.process_time() - started
        for _, picked in zip(range(steps), loader, strict=False):
            x, y = views.of(picked)
            outputs = logits(model, x, plan.half)
            losses = F.cross_entropy(outputs, y, label_smoothing=plan.smoothing, reduction="none")
            seen[picked] = losses.detach()
            optimizer.zero_grad()
            (losses if weights is None else losses * weights[picked]).mean().backward()
            optimizer.step()
            schedule.step()
        recorder.on_epoch_end()
    seconds = time.process_time() - began
    found = recorder.trajectory
    return Run(
        accuracy(model, images, plan.half), seconds, choosing, sum(steps for _, steps in epochs),
        len(epochs), found.headrooms(), found, model,
    )  # fmt: skip


def logits(model: nn.Module, x: Tensor, half: bool) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        return model(x).float()


def accuracy(model: nn.Module, images: Images, half: bool) -> float:
    """Share of the test images that are classified right, each by its two mirrored views where it may be."""
    model.eval()
    right = 0
    with torch.inference_mode():
        for x, y in zip(*(t.split(1000) for t in images.test.tensors), strict=True):
            views = [x, x.flip(3)] if images.mirrored else [x]
            right += int((sum(logits(model, view, half) for view in views).argmax(1) == y).sum())
    return right / len(images.test)


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
            F.cross_entropy(
                logits(head, x, plan.half), y, label_smoothing=plan.smoothing
            ).backward()
        if recorder:
            recorder.on_epoch_end()
        return time.process_time() - started

    return median(seconds(True) - seconds(False) for _ in range(5))
