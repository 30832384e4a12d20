"""Accuracy at equal optimiser steps: our sets beside random, fewer epochs, and other ways to choose.

    python examples/benchmarks/accuracy.py
    python examples/benchmarks/accuracy.py --dataset imagefolder --data-dir CIFAR --train-size 10000 \\
        --output runs/cifar.jsonl
    python examples/benchmarks/accuracy.py --dataset cifar10 --model resnet18 --epochs 30 \\
        --warmup-epochs 5 --batch-size 512 --lr 0.4 --seeds 0 1 2 3 4 --minutes 25 --output runs/gpu.jsonl

Every run is a line of JSON in --output; runs that are there are not run again, so that a killed
benchmark goes on where it stopped. The first runs tell most: all methods at the first fraction with
the first seed, then its other seeds, then the other fractions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from accuracy_report import tables
from ideas import IDEAS
from methods import METHODS
from plots import accuracies_and_seconds
from results import Job, Results, Row, read, show
from setting import MODELS, device, load, measures, parser, recipe, settings
from training import fresh, train


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """Methods, fractions and seeds, the most telling first."""
    first, *others = options.fractions
    for fractions in ([first], others):
        for seed in options.seeds:
            for fraction in fractions:
                for method in options.methods:
                    if method != "all data":
                        yield {"method": method, "fraction": fraction, "seed": seed}
                    elif fraction == first:
                        yield {"method": method, "fraction": 0.0, "seed": seed}


def main() -> None:
    options = arguments()
    results = Results(options.output, settings(options))
    images = cache(lambda: load(options))

    def work(job: Job) -> Row:
        chosen = recipe(options, job["fraction"], job["seed"])
        network = fresh(images(), MODELS[options.model], job["seed"])
        method = {**METHODS, **IDEAS}[job["method"]]()
        steps = chosen.pruned_steps(len(images().train))
        return measures(train(images(), network, chosen, method, steps, device()))

    results.run(jobs(options), work, options.minutes)
    rows = read(options.output)
    show(*tables(rows))
    if options.plot and rows:
        accuracies_and_seconds(rows).savefig(options.plot, dpi=120)


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "accuracy.jsonl")
    made.add_argument("--fractions", type=float, nargs="+", default=[0.4, 0.2, 0.3, 0.5, 0.7])
    made.add_argument(
        "--methods", nargs="+", choices=[*METHODS, *IDEAS], default=list(METHODS), metavar="METHOD"
    )
    made.add_argument("--plot", type=Path, help="draw a figure to this file")
    return made.parse_args()


if __name__ == "__main__":
    main()
