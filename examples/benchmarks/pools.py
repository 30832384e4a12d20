"""Training sets of which a part is bad: what each method keeps, and the accuracy that comes out.

    python examples/benchmarks/pools.py
    python examples/benchmarks/pools.py --dataset imagefolder --data-dir CIFAR --train-size 5000 \\
        --epochs 12 --output runs/pools.jsonl

Four pools. Wrong labels: a fifth of the labels is drawn anew among the other classes. Near copies: three
tenths are copies of a few images, moved and with noise. Other classes: only the first half of the classes
is wanted. Corrupted: half of the images are blurred and noisy. The test images are as wanted; every tenth
one is a validation image instead, which "validation loss" and "target" look at. All methods take as many
steps; "without the bad" knows which are bad and prunes those first.

The run on all data also lists suspects, after the warm-up and at its end: as many samples as are bad, the
highest of each cost. That share of them which is bad is precision and recall of the list at once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from prunesampler import Price, Target, costs

sys.path.insert(0, str(Path(__file__).parents[1]))
from corrupting import POOLS, Pool
from methods import METHODS, Choice, Cost, Influence, Once, easiness, everything, pruner
from pools_report import tables
from results import Job, Results, Row, read, show
from setting import MODELS, device, load, measures, parser, recipe, settings
from training import Method, Progress, fresh, train

SUSPICIONS: dict[str, Cost] = {
    "EL2N": costs.el2n,
    "margin": costs.margin,
    "self-influence": costs.self_influence,
    "validation loss": lambda scores: -costs.validation_loss(scores),
}


def good_first(progress: Progress, bad: Tensor) -> Tensor:
    """As many as the budget keeps, the good before the bad, otherwise at random."""
    order = torch.rand(progress.size, generator=progress.generator()) + bad
    return order.argsort()[: progress.keep]


class Suspecting:
    """All data; lists suspects when first called, after the warm-up."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.found: dict[str, float] = {}

    def __call__(self, progress: Progress) -> Choice:
        if not self.found:
            self.found = suspects(progress, self._pool)
        return everything(progress)


def suspects(progress: Progress, pool: Pool) -> dict[str, float]:
    """Share of bad samples among the highest of each cost, as many as are bad."""
    scores = pruner(progress, objective=Target(pool.validation)).measure(progress.model)
    assert scores is not None
    count = int(pool.bad.sum())
    return {
        name: float(pool.bad[cost(scores).argsort(descending=True)[:count]].float().mean())
        for name, cost in SUSPICIONS.items()
    }


def known(name: str) -> Callable[[Pool], Method]:
    return lambda pool: METHODS[name]()


POOL_METHODS: dict[str, Callable[[Pool], Method]] = {
    "all data": Suspecting,
    "fewer epochs": known("fewer epochs"),
    "random": known("random"),
    "EL2N": known("EL2N"),
    "coverage": known("coverage"),
    "influence": known("influence"),
    "influence, drop hard": known("influence, drop hard"),
    "drop hardest": lambda pool: Influence(objective=Price(easiness, shift=False)),
    "validation loss": lambda pool: Influence(objective=Target(pool.validation, shift=False)),
    "influence, target": lambda pool: Influence(objective=Target(pool.validation, weight=0.5)),
    "without the bad": lambda pool: Once(lambda progress: good_first(progress, pool.bad)),
}  # fmt: skip
"""From nothing to all that is known."""


def main() -> None:
    options = arguments()
    results = Results(options.output, settings(options, "fraction"))
    images = cache(lambda: load(options))

    def work(job: Job) -> Row:
        pool = POOLS[job["pool"]](images(), job["seed"])
        chosen, size = recipe(options, options.fraction, job["seed"]), len(pool.images.train)
        network = fresh(pool.images, MODELS[options.model], job["seed"])
        method = POOL_METHODS[job["method"]](pool)
        full = job["method"] == "all data"
        steps = chosen.full_steps(size) if full else chosen.pruned_steps(size)
        outcome = train(pool.images, network, chosen, method, steps, device())
        row = {**measures(outcome), "kept_bad": float(pool.bad[outcome.kept].float().mean())}
        if isinstance(method, Suspecting):
            after = Progress(pool.images, chosen, outcome.model, 0)
            row["suspects"] = {"warm-up": method.found, "end": suspects(after, pool)}
        return row

    results.run(jobs(options), work, options.minutes)
    show(*tables(read(options.output)))


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for pool in options.pools:
            for method in options.methods:
                yield {"pool": pool, "method": method, "seed": seed}


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "pools.jsonl")
    names = list(POOL_METHODS)
    made.add_argument("--fraction", type=float, default=0.4)
    made.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    made.add_argument("--methods", nargs="+", choices=names, default=names, metavar="METHOD")
    return made.parse_args()


if __name__ == "__main__":
    main()
