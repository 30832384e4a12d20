"""What the sampler costs beside torch's: a whole pass, and restricting, for ImageNet's number of indices.

Every repeat times all of them in turn. Prints a table of medians; with --json, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import deque
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import BatchSampler, RandomSampler, Sampler

from prunesampler import InfluencePrunedSampler

BATCH = 256


def exhaust(sampler: Sampler[int]) -> None:
    deque(sampler, maxlen=0)


def tensor_bytes(work: Callable[[], object]) -> int:
    """Bytes that torch allocated during the work, freed or not."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    return sum(size for size in sizes if size > 0)


def measure(samples: int, repeats: int) -> dict[str, float]:
    data = range(samples)
    ours, torchs = InfluencePrunedSampler(data), RandomSampler(data)
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(0))
    kept = order[: samples * 6 // 10]
    works = {
        "torch_pass": lambda: exhaust(torchs),
        "pass": lambda: exhaust(ours),
        "torch_batches": lambda: exhaust(BatchSampler(torchs, BATCH, False)),
        "batches": lambda: exhaust(BatchSampler(ours, BATCH, False)),
        "copy": lambda: kept.clone(),
        "restrict": lambda: (ours.restrict(kept), ours.reset()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    found = {
        f"{name}_seconds": statistics.median(values[1:])  # the first is a warm-up
        for name, values in seconds.items()
    }
    found["pass_ratio"] = found["pass_seconds"] / found["torch_pass_seconds"]
    found["batches_ratio"] = found["batches_seconds"] / found["torch_batches_seconds"]
    found["restrict_mib"] = tensor_bytes(lambda: ours.restrict(kept)) / 2**20
    found["kept_mib"] = kept.numel() * 8 / 2**20
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=1_281_167)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = measure(arguments.samples, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=1))
    else:
        table = Table("measure", "value", title=f"{arguments.samples:,} indices")
        for name, value in found.items():
            table.add_row(name.replace("_", " "), f"{value:.3g}")
        Console().print(table)
