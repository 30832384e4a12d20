"""What the accuracy benchmarks share: their options, the data, the networks."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from data import Images, cifar10, digits, imagefolder
from models import convmixer, plain_cnn, resnet9, resnet18, small_resnet, tiny_resnet
from training import Outcome, Recipe

MODELS = {
    "tiny": tiny_resnet, "plain": plain_cnn, "mixer": convmixer, "small": small_resnet,
    "resnet9": resnet9, "resnet18": resnet18,
}  # fmt: skip


def parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """The options that all accuracy benchmarks have; ``--minutes 0`` only shows what is there."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--dataset", choices=["digits", "cifar10", "imagefolder"], default="digits")
    made.add_argument("--data-dir", type=Path, default=Path("data"))
    made.add_argument("--train-size", type=int, help="train on that many images (default: all)")
    made.add_argument("--model", choices=list(MODELS), default="tiny")
    made.add_argument("--epochs", type=int, default=16)
    made.add_argument("--warmup-epochs", type=int, default=4)
    made.add_argument("--batch-size", type=int, default=128)
    made.add_argument("--lr", type=float, default=0.1)
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--minutes", type=float, help="begin no run after so many")
    made.add_argument("--output", type=Path, default=Path("runs") / output)
    made.set_defaults(benchmark=Path(output).stem)
    return made


def settings(options: argparse.Namespace, *more: str) -> dict[str, Any]:
    """What must be the same in all runs of a file; the images themselves are not compared."""
    names = (
        "benchmark", "dataset", "train_size", "model", "epochs", "warmup_epochs", "batch_size", "lr",
        *more,
    )  # fmt: skip
    cuda = torch.cuda.is_available()
    made = {name: _plain(getattr(options, name)) for name in names}
    return {**made, "device": torch.cuda.get_device_name() if cuda else "cpu"}


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Path) else value


def load(options: argparse.Namespace) -> Images:
    """The images, of which `--train-size` are trained on."""
    images = load_all(options)
    return images if options.train_size is None else images.first(options.train_size)


def load_all(options: argparse.Namespace) -> Images:
    if options.dataset == "digits":
        return digits()
    if options.dataset == "cifar10":
        return cifar10(options.data_dir)
    return imagefolder(options.data_dir, 32)


def recipe(options: argparse.Namespace, fraction: float, seed: int, *, warm: bool = True) -> Recipe:
    """The recipe of the options; without warm-up where the set is known beforehand."""
    warmup = options.warmup_epochs if warm else 0
    return Recipe(options.epochs, warmup, fraction, options.batch_size, options.lr, seed=seed)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def measures(outcome: Outcome) -> dict[str, Any]:
    """What of a run goes to its file."""
    return {
        "accuracy": outcome.accuracy, "steps": outcome.steps, "samples": outcome.samples,
        "seconds": outcome.seconds, "choosing_seconds": outcome.choosing_seconds,
    }  # fmt: skip
