"""The main job: train on all data, on a random part, and on the part that influence keeps.

Two more baselines take as many steps as these parts: all data for fewer epochs, and a random part
drawn anew every epoch; and beside that a part redrawn from the same influences. All runs have the same seeds, the same warm-up and the same schedule family,
sized to their own number of steps. Prints one table and writes metrics.json and the selection. Runs
under python, torchrun and accelerate launch alike; killed, it goes on with --resume.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from data import Images, Normalise, cifar10, digits, imagefolder
from models import resnet18, small_resnet
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from prunesampler import (
    AutoCurvature,
    Budget,
    InfluencePrunedSampler,
    InfluencePruner,
    PruningCallback,
)
from prunesampler.base.files import write_atomically

METHODS = {
    "all": "all data",
    "fewer": "fewer epochs",
    "random": "random",
    "redrawn": "redrawn random",
    "influence": "influence",
    "redraw": "influence, redrawn",
}


@dataclass
class Progress:
    """How far a run is and what it took; part of its checkpoints."""

    epoch: int = 0
    steps: int = 0
    samples: int = 0
    seconds: float = 0.0
    selecting_seconds: float = 0.0

    def state_dict(self) -> dict[str, float]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.__dict__.update(state)


class Run:
    """One of the trainings."""

    def __init__(self, method: str, options: argparse.Namespace, images: Images) -> None:
        self.method, self.options, self.images = method, options, images
        self.folder: Path = options.output_dir / method
        # One batch is shared out over the processes, so that a run is the same on any number.
        self.accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=options.mixed_precision,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
        )
        set_seed(options.seed)
        builder = {"small": small_resnet, "resnet18": resnet18}[options.model]
        network = builder(images.channels, images.classes)
        model = nn.Sequential(Normalise(images.train.tensors[0]), network)
        optimizer = torch.optim.SGD(
            model.parameters(), options.lr, 0.9, weight_decay=options.weight_decay, nesterov=True
        )
        self.sampler = InfluencePrunedSampler(images.train, seed=options.seed)
        loader = DataLoader(images.train, options.batch_size, sampler=self.sampler)
        self.pruning = self._callback()
        if method not in ("influence", "redraw"):
            self.sampler.listening.called()  # they compare without the callback, which would be missed
        steps = self.pruning.planned_steps(epochs=options.epochs, batch_size=options.batch_size)
        per_epoch = -(-len(images.train) // options.batch_size)
        self.epochs = round(steps / per_epoch) if method == "fewer" else options.epochs
        if method in ("all", "fewer"):
            steps = per_epoch * self.epochs
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, total_steps=steps)
        self.model, self.optimizer, self.loader, self.schedule, self.test_loader = (
            self.accelerator.prepare(
                model, optimizer, loader, schedule, DataLoader(images.test, 500)
            )
        )
        self.progress = Progress()
        self.accelerator.register_for_checkpointing(self.progress)

    def _callback(self) -> PruningCallback:
        options = self.options
        pruner = InfluencePruner(
            self.images.train,  # augmentation happens in the loop, so these are clean
            budget=Budget(fraction=options.fraction),
            curvature=AutoCurvature(damping=options.weight_decay or None),
            seed=options.seed,
        )
        return PruningCallback(
            self.sampler,
            pruner,
            warmup_epochs=options.warmup_epochs,
            refresh_every=options.refresh_every,
            redraw_every=options.redraw_every if self.method == "redraw" else None,
            final_full_epochs=options.final_full_epochs,
            epochs=options.epochs,
            accelerator=self.accelerator,
            on_selection=self._save_selection,
            report=options.output_dir / "pages" if options.pages else None,
        )

    def _save_selection(self, selection) -> None:
        if self.accelerator.is_main_process:
            selection.save(self.options.output_dir / "selection.safetensors")

    def prune(self, epoch: int) -> None:
        """What this method does at the end of an epoch."""
        options, size, next_epoch = self.options, len(self.images.train), epoch + 1
        if self.method in ("influence", "redraw"):
            self.pruning.on_epoch_end(epoch, self.model)
        elif self.method not in ("random", "redrawn") or next_epoch < options.warmup_epochs:
            return
        elif next_epoch >= options.epochs - options.final_full_epochs:
            self.sampler.reset()
        else:
            draw = next_epoch if self.method == "redrawn" else 0
            order = np.random.default_rng([options.seed, draw]).permutation(size)
            self.sampler.restrict(order[Budget(fraction=options.fraction).count_of(size) :])

    def train(self) -> dict[str, float]:
        """Train to the end, from the last checkpoint if it resumes; return the result."""
        self._load()
        main = self.accelerator.is_main_process
        bar = tqdm(total=self.epochs, desc=METHODS[self.method], unit="epoch", disable=not main)
        bar.update(self.progress.epoch)
        for epoch in range(self.progress.epoch, self.epochs):
            started = time.perf_counter()
            loss = self._train_epoch(epoch)
            trained = time.perf_counter()
            self.prune(epoch)
            self.progress.epoch = epoch + 1
            self.progress.seconds += time.perf_counter() - started
            self.progress.selecting_seconds += time.perf_counter() - trained
            self._save()
            bar.set_postfix(loss=f"{loss:.3f}", samples=self.progress.samples)
            bar.update()
        bar.close()
        return {"test_accuracy": self.accuracy(), **asdict(self.progress)}

    def _train_epoch(self, epoch: int) -> float:
        self.model.train()
        self.loader.set_epoch(epoch)
        total = 0.0
        for images, labels in self.loader:
            loss = F.cross_entropy(self.model(self.images.augment(images)), labels)
            self.accelerator.backward(loss)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            total += loss.item()
            self.progress.steps += 1
        self.progress.samples += len(self.sampler)
        return total / len(self.loader)

    def accuracy(self) -> float:
        """Share of the test images that are classified right."""
        self.model.eval()
        right = 0
        for images, labels in self.test_loader:
            with torch.no_grad():
                answers = self.model(images).argmax(1)
            answers, labels = self.accelerator.gather_for_metrics((answers, labels))
            right += int((answers == labels).sum())
        return right / len(self.images.test)

    def _save(self) -> None:
        """Write a checkpoint, whole or not at all, and drop the one before."""
        partial, whole = self.folder / "partial", self.folder / f"epoch-{self.progress.epoch:04d}"
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            os.replace(partial, whole)
            for old in sorted(self.folder.glob("epoch-*"))[:-1]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load(self) -> None:
        """Go on from the last checkpoint, or start anew without the old ones."""
        if self.accelerator.is_main_process:
            if not self.options.resume:
                drop_checkpoints(self.folder)
            shutil.rmtree(self.folder / "partial", ignore_errors=True)
            self.folder.mkdir(parents=True, exist_ok=True)
        self.accelerator.wait_for_everyone()
        checkpoints = sorted(self.folder.glob("epoch-*"))
        if checkpoints:
            self.accelerator.load_state(str(checkpoints[-1]))
            self.accelerator.print(f"resumed {self.method} after epoch {self.progress.epoch}")


def drop_checkpoints(folder: Path) -> None:
    for checkpoint in folder.glob("epoch-*"):
        shutil.rmtree(checkpoint)


def load_images(options: argparse.Namespace) -> Images:
    if options.dataset == "digits":
        images = digits()
    elif options.dataset == "cifar10":
        images = cifar10(options.data_dir)
    else:
        images = imagefolder(options.data_dir, options.image_size)
    return images if options.train_size is None else images.first(options.train_size)


def show(results: dict[str, dict[str, float]], title: str) -> None:
    table = Table(title=title, box=SIMPLE)
    for name in ("method", "accuracy", "samples", "steps", "seconds", "selecting", "speed-up"):
        table.add_column(name, no_wrap=True)
    base = results.get("all", {}).get("seconds")
    for method, row in results.items():
        table.add_row(
            METHODS[method], f"{row['test_accuracy']:.2%}", f"{row['samples']:,}",
            f"{row['steps']:,}", f"{row['seconds']:.1f}", f"{row['selecting_seconds']:.1f}",
            f"{base / row['seconds']:.2f}x" if base else "",
        )  # fmt: skip
    Console(width=max(90, Console().width)).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", choices=["digits", "cifar10", "imagefolder"], default="digits")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--image-size", type=int, default=32, help="of imagefolder")
    parser.add_argument("--train-size", type=int, help="train on that many images (default: all)")
    parser.add_argument("--model", choices=["small", "resnet18"], default="small")
    parser.add_argument("--only", choices=list(METHODS), help="train just this one")
    parser.add_argument("--fraction", type=float, default=0.4, help="share to prune")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--warmup-epochs", type=int, default=10)
    parser.add_argument("--refresh-every", type=int, help="select again every so many epochs")
    parser.add_argument("--redraw-every", type=int, default=5, help="epochs between redraws")
    parser.add_argument("--final-full-epochs", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=64, help="over all processes")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--weight-decay", type=float, default=5e-4)
    parser.add_argument("--mixed-precision", choices=["no", "bf16", "fp16"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/train"))
    parser.add_argument("--pages", action="store_true", help="write a page after each selection")
    parser.add_argument("--resume", action="store_true", help="go on where a run was killed")
    return parser.parse_args()


def settings_of(options: argparse.Namespace) -> dict[str, str]:
    """What must be the same for a run to be resumed."""
    return {k: str(v) for k, v in vars(options).items() if k not in ("resume", "only")}


def earlier_results(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Results of finished methods of the same settings; refuses to resume with other settings."""
    settings = settings_of(options)
    file = options.output_dir / "metrics.json"
    saved = json.loads(file.read_text()) if file.exists() else {"settings": None, "results": {}}
    if options.resume and saved["settings"] not in (None, settings):
        raise SystemExit(f"{file} is of another run: {saved['settings']}; resume with its options")
    same = saved["settings"] == settings
    results = saved["results"] if same else {}
    if not same and int(os.environ.get("RANK", "0")) == 0:
        for method in METHODS:  # checkpoints of other settings must not be resumed
            drop_checkpoints(options.output_dir / method)
    if not options.resume:
        results = {m: row for m, row in results.items() if options.only not in (m, None)}
    write(options, results)
    return results


def write(options: argparse.Namespace, results: dict[str, dict[str, float]]) -> None:
    """Write metrics.json, on one process."""
    if int(os.environ.get("RANK", "0")) == 0:
        options.output_dir.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"settings": settings_of(options), "results": results}, indent=1)
        write_atomically(options.output_dir / "metrics.json", content.encode())


def main() -> None:
    options = arguments()
    images = load_images(options)
    results = earlier_results(options)
    for method in [options.only] if options.only else METHODS:
        if method not in results:
            results[method] = Run(method, options, images).train()
            write(options, results)
    if int(os.environ.get("RANK", "0")) == 0:
        ordered = {method: results[method] for method in METHODS if method in results}
        show(ordered, f"{options.dataset}, {len(images.train):,} training images")
    Accelerator().end_training()


if __name__ == "__main__":
    main()
