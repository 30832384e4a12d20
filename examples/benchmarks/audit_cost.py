"""What an audit costs beside a forward pass of a network over the same samples.

    python examples/benchmarks/audit_cost.py
    python examples/benchmarks/audit_cost.py --samples 2000 --features 64

Features are random, of ten classes that overlap, and a linear layer is trained on them for three epochs. The
forward pass is that of torchvision's ResNet-18 without weights, timed on two batches. One core.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from torchvision.models import resnet18

from prunesampler import Budget, InfluencePruner

CLASSES = 10
BATCH = 50
"""Images in a batch of the forward pass."""


def samples(count: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features as a ReLU leaves them, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.randint(0, CLASSES, (count,), generator=draw)
    centres = torch.randn(CLASSES, width, generator=draw) / 4
    return (centres[y] + torch.randn(count, width, generator=draw)).relu(), y


def trained(x: Tensor, y: Tensor) -> nn.Linear:
    layer = nn.Linear(x.shape[1], CLASSES)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-3)
    for _ in range(3):
        for chosen in torch.randperm(len(x)).split(500):
            optimizer.zero_grad()
            F.cross_entropy(layer(x[chosen]), y[chosen]).backward()
            optimizer.step()
    return layer


def forward_seconds(pixels: int, count: int) -> float:
    """Seconds of a forward pass over so many images."""
    model, batch = resnet18().eval(), torch.randn(BATCH, 3, pixels, pixels)
    took = []
    with torch.inference_mode():
        for _ in range(3):
            started = time.process_time()
            model(batch)
            took.append(time.process_time() - started)
    return statistics.median(took[1:]) * count / BATCH


def peak() -> float:
    """GB that this process held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--samples", type=int, default=50_000)
    made.add_argument("--features", type=int, default=512)
    made.add_argument("--pixels", type=int, default=224, help="of an image of the forward pass")
    made.add_argument("--seed", type=int, default=0)
    options = made.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    x, y = samples(options.samples, options.features, options.seed)
    pruner = InfluencePruner(
        TensorDataset(x, y), budget=Budget(fraction=0.4), batch_size=1000, progress=False
    )
    scores = pruner.measure(trained(x, y))
    assert scores is not None
    before, started = peak(), time.process_time()
    scores.audit()
    seconds, more = time.process_time() - started, peak() - before
    forward = forward_seconds(options.pixels, options.samples)
    row = {
        "samples": options.samples, "features": options.features, "audit_seconds": round(seconds, 1),
        "more_gigabytes": round(more, 2), "forward_seconds": round(forward, 2), "share": round(seconds / forward, 3),
    }  # fmt: skip
    table = Table(*row)
    table.add_row(*map(str, row.values()))
    Console(width=100).print(table)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
