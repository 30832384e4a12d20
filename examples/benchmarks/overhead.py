"""What selecting costs beside one evaluation forward pass of ResNet-18 over the same images.

The forward pass is timed on --images and extrapolated to --samples, linearly; the algebra (curvature,
solving, certificate) runs in full size on 512 features per sample. Times are wall-clock on this
machine, medians over --repeats. Prints a table; with --json, one JSON object instead.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import BlockCurvature, Budget, Curvature, InfluencePruner

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import resnet18

CLASSES, FEATURES, BATCH = 10, 512, 250


def seconds_forward(model: nn.Module, images: torch.Tensor) -> float:
    """One plain evaluation pass."""
    model.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in images.split(BATCH):
            model(batch)
    return time.perf_counter() - started


def pruner_of(data: TensorDataset, curvature: Curvature | None = None) -> InfluencePruner:
    budget = Budget(fraction=0.4)
    return InfluencePruner(
        data, budget=budget, batch_size=BATCH, progress=False, curvature=curvature
    )


class PeakMemory:
    """Highest resident memory above the starting point while inside, in bytes."""

    def __enter__(self) -> PeakMemory:
        self._process, self._stop = psutil.Process(), threading.Event()
        self._before, self.peak = self._process.memory_info().rss, 0
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.01):
            self.peak = max(self.peak, self._process.memory_info().rss - self._before)

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._watcher.join()


def features(samples: int) -> TensorDataset:
    """Non-negative features around ten centres, as ReLU and pooling would give."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (samples,), generator=generator)
    centres = torch.randn(CLASSES, FEATURES, generator=generator)
    noise = torch.randn(samples, FEATURES, generator=generator)
    return TensorDataset((0.5 * centres[labels] + noise).relu(), labels)


def measure(images: int, samples: int, repeats: int) -> dict[str, float]:
    torch.manual_seed(0)
    model = resnet18(3, CLASSES)
    pictures = TensorDataset(torch.randn(images, 3, 32, 32), torch.arange(images) % CLASSES)
    head, data = nn.Sequential(nn.Linear(FEATURES, CLASSES)), features(samples)
    seconds_forward(model, pictures.tensors[0][:BATCH])  # warm up
    pruner_of(features(1000), BlockCurvature()).select(head)  # compile
    forward, scoring = [], []
    for _ in range(repeats):
        forward.append(seconds_forward(model, pictures.tensors[0]))
        scoring.append(pruner_of(pictures).select(model).metadata["measuring_seconds"])
    scale = samples / images
    expected = pruner_of(data).estimate(head)
    assert expected is not None
    with PeakMemory() as memory:
        selection = pruner_of(data).select(head)
    times = selection.metadata
    forward_seconds = statistics.median(forward) * scale
    measuring = max(0.0, (statistics.median(scoring) - statistics.median(forward)) * scale)
    added = measuring + sum(times[f"{k}_seconds"] for k in ("curvature", "solving", "certificate"))
    return {
        "forward_seconds_extrapolated": forward_seconds,
        "measuring_seconds_extrapolated": measuring,
        "curvature_seconds": times["curvature_seconds"],
        "solving_seconds": times["solving_seconds"],
        "certificate_seconds": times["certificate_seconds"],
        "added_share_of_forward": added / forward_seconds,
        "peak_memory_gib": memory.peak / 2**30,
        "estimated_memory_gib": (expected.bytes_measured + expected.bytes_work) / 2**30,
        "estimated_seconds": sum(expected.seconds.values()),
        "share_of_a_random_set": selection.ratio,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=2000, help="images through ResNet-18")
    parser.add_argument("--samples", type=int, default=50_000, help="samples in the algebra")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = measure(arguments.images, arguments.samples, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        table = Table("measure", "value", title=f"n = {arguments.samples}, C = 10, d = 512")
        for name, value in found.items():
            table.add_row(name.replace("_", " "), f"{value:.3g}")
        Console().print(table)
