"""A small network shows which images are hard, and a large one trains on those.

    python examples/proxy.py
    python examples/proxy.py --images CIFAR_FOLDER --epochs 12 --proxy-epochs 10

A small network trains on everything and records its errors. Then a large one trains three times for the same
number of steps: on all images, on the hardest share by the small one's errors at the same share of its run, and
on the hardest by its own errors when it last saw them, which needs no small network. Prints the accuracy and
the processor seconds of each, the small network's own included. The digits (by default) are too easy and
too few for anything to be gained: they show how it is done.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from data import Images, Normalise, digits
from models import small_resnet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from prunesampler import (
    Budget,
    InfluencePrunedSampler,
    Pruner,
    PruningCallback,
    Trajectory,
    TrajectoryPruner,
    TrajectoryRecorder,
)

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--images", type=Path, help="folder with train/CLASS/* and test/CLASS/*")
parser.add_argument("--epochs", type=int, default=8, help="of the large network, on all images")
parser.add_argument("--proxy-epochs", type=int, default=6)
parser.add_argument("--fraction", type=float, default=0.3, help="left out in each epoch")
parser.add_argument("--path", type=Path, default=Path("runs/trajectory.safetensors"))
given = parser.parse_args()
given.path.parent.mkdir(parents=True, exist_ok=True)
BATCH, SMOOTHING = 100, 0.1
Choose = Callable[[TrajectoryRecorder], Pruner | None]


def folder(path: Path) -> Images:
    """All images of a folder in memory."""

    def read(part: str) -> TensorDataset:
        found = ImageFolder(str(path / part))
        pixels = torch.stack([pil_to_tensor(image) for image, _ in found])
        return TensorDataset(pixels, torch.tensor(found.targets))

    train = read("train")
    return Images(train, read("test"), int(train.tensors[1].max()) + 1, padding=4, mirrored=True)


def train(
    features: int, epochs: int, choose: Choose, path: Path | None = None
) -> tuple[float, float]:
    """Train for so many epochs' worth of steps; returns the accuracy and the processor seconds."""
    torch.manual_seed(0)
    started, (x, y) = time.process_time(), images.train.tensors
    model = nn.Sequential(Normalise(x), small_resnet(images.channels, images.classes, features))
    sampler = InfluencePrunedSampler(range(len(x)))
    loader = DataLoader(range(len(x)), BATCH, sampler=sampler, drop_last=True)
    recorder = TrajectoryRecorder(sampler, loader, model, path=path)
    pruner, pruning = choose(recorder), None
    if pruner is not None:
        pruning = PruningCallback(sampler, pruner, warmup_epochs=1, refresh_every=1)
    steps = epochs * len(loader)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=steps)
    epoch = done = 0
    while done < steps:
        for chosen in loader:
            if done < steps:
                logits = model(images.augment(x[chosen]))
                loss = F.cross_entropy(logits, y[chosen], label_smoothing=SMOOTHING)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                done += 1
        if pruning is not None:
            pruning.on_epoch_end(epoch, model)
        else:
            recorder.on_epoch_end()
        epoch += 1
    return accuracy(model), time.process_time() - started


def accuracy(model: nn.Module) -> float:
    model.eval()
    x, y = images.test.tensors
    with torch.inference_mode():
        found = torch.cat([model(part).argmax(1) for part in x.split(500)])
    return float((found == y).double().mean())


images = digits() if given.images is None else folder(given.images)
budget, more = Budget(fraction=given.fraction), round(given.epochs / (1 - given.fraction))
proxy, before = train(16, given.proxy_epochs, lambda recorder: None, given.path)
trajectory = Trajectory.load(given.path)
print(f"small network: {proxy:.2%} in {before:.0f} s; {trajectory}")
recorded = TrajectoryPruner(trajectory, budget=budget, epochs=more, progress=False)
rows: dict[str, tuple[Choose, float]] = {
    "all images": (lambda recorder: None, 0.0),
    "hardest by the small network": (lambda recorder: recorded, before),
    "hardest by its own errors": (
        lambda recorder: TrajectoryPruner(recorder, budget=budget, progress=False), 0.0
    ),
}  # fmt: skip
for name, (choose, spent) in rows.items():
    found, seconds = train(64, given.epochs, choose)
    print(f"{name:30} {found:.2%} in {seconds + spent:.0f} s")
