"""Do sets chosen with one architecture serve others? Chosen with one, saved as files, trained by all.

    python examples/benchmarks/transfer.py
    python examples/benchmarks/transfer.py --dataset imagefolder --data-dir CIFAR --train-size 10000 \\
        --output runs/transfer.jsonl

`--model` is trained on all data and chooses; then each of `--targets` is trained from nothing on the
kept samples alone, all for as many steps. Fewer epochs on all data and a random set beside it.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from rich.table import Table

from prunesampler import KeepHead, Objective, Price, Selection, costs

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images
from methods import Once, everything, pruner
from results import Job, Results, Row, points, read, show, spread
from setting import MODELS, device, load, measures, parser, recipe, settings
from training import Progress, fresh, train

CHOICES: dict[str, Objective] = {
    "influence": KeepHead(),
    "EL2N": Price(costs.el2n, shift=False),
}


def select(images: Images, options: argparse.Namespace, seed: int) -> None:
    """Train the choosing network on all data, and write the files that are not there."""
    full = recipe(options, 0.0, seed, warm=False)
    network = fresh(images, MODELS[options.model], seed)
    steps = full.full_steps(len(images.train))
    model = train(images, network, full, everything, steps, device()).model
    for name, objective in CHOICES.items():
        path = file_of(options, name, seed)
        if path.exists():
            continue
        chosen = recipe(options, options.fraction, seed, warm=False)
        after = Progress(images, chosen, model, 0)
        pruner(after, objective=objective).select(model).save(path)


def file_of(options: argparse.Namespace, name: str, seed: int) -> Path:
    options.sets.mkdir(parents=True, exist_ok=True)
    found: Path = options.sets / f"{options.model}-{name}-{options.fraction}-{seed}.safetensors"
    return found


def kept_samples(job: Job, images: Images, options: argparse.Namespace) -> torch.Tensor:
    """What a job trains on; a set whose file is not there is chosen first.

    Raises:
        SystemExit: when the file is of other data or another budget.
    """
    size, seed = len(images.train), job["seed"]
    keep = recipe(options, options.fraction, seed, warm=False).keep(size)
    if job["set"] == "fewer epochs":
        return torch.arange(size)
    if job["set"] == "random":
        return torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:keep]
    path = file_of(options, job["set"], seed)
    if not path.exists():
        select(images, options, seed)
    selection = Selection.load(path)
    if selection.num_samples != size or len(selection.kept) != keep:
        raise SystemExit(
            f"{path} keeps {len(selection.kept)} of {selection.num_samples} samples, not {keep} of "
            f"{size}: it is of another run; choose another --sets"
        )
    return selection.kept


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for target in options.targets:
            for name in ("fewer epochs", "random", *CHOICES):
                yield {"target": target, "set": name, "seed": seed}


def tables(rows: list[Row]) -> list[Table]:
    """Accuracies of the trained networks, by set."""
    shown = Table("trained", "set", "seeds", "accuracy %", "to random")
    groups = defaultdict(list)
    for row in rows:
        groups[row["target"], row["set"]].append(row)
    for (target, name), runs in groups.items():
        beside = "" if name == "random" else spread(points(runs, groups[target, "random"]), "+.1f")
        shown.add_row(
            target, name, str(len(runs)), spread([100 * r["accuracy"] for r in runs]), beside
        )
    return [shown]


def main() -> None:
    options = arguments()
    results = Results(options.output, settings(options, "fraction"))
    images = cache(lambda: load(options))

    def work(job: Job) -> Row:
        kept = kept_samples(job, images(), options)
        network = fresh(images(), MODELS[job["target"]], job["seed"])
        chosen = recipe(options, options.fraction, job["seed"], warm=False)
        steps = chosen.pruned_steps(len(images().train))
        return measures(train(images(), network, chosen, Once(lambda _: kept), steps, device()))

    results.run(jobs(options), work, options.minutes)
    show(*tables(read(options.output)))


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "transfer.jsonl")
    made.add_argument("--fraction", type=float, default=0.4)
    made.add_argument("--sets", type=Path, help="folder of the sets (default: beside --output)")
    made.add_argument(
        "--targets", nargs="+", choices=list(MODELS), default=["tiny", "plain", "mixer"]
    )
    options = made.parse_args()
    options.sets = options.sets or options.output.with_suffix(".sets")
    return options


if __name__ == "__main__":
    main()
