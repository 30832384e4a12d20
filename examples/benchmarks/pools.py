"""Pools of samples of which a part is bad: what each method drops, and what that is worth.

    python examples/benchmarks/pools.py
    python examples/benchmarks/pools.py --features FEATURES --size 4000 --wanted 250 \\
        --output runs/pools-features.jsonl

A linear head is trained on frozen features: FEATURES is a safetensors file of train, train_labels, test and
test_labels; without it, these are the pixels of scikit-learn's digits. Every method sees the pool and some
wanted samples that are sure, says what to keep, and is trained on that and the wanted samples. Methods that need
a number prune as many as are bad; of a clean pool a fifth, of a long tail a half. Those of the audit, and some
of their rivals, find out how many by themselves.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from pools_data import COMPONENTS, POOLS, Drawing, Pool, Sizes, load
from pools_methods import DECAY, LOSSES, METHODS, Task, both, fitted
from pools_report import tables
from results import Job, Results, Row, read, show

PLAIN = ("all data", "wanted alone", "truth known", "random")
BY_WANTED = (
    "Target", "audit, off-target", "WantedLoss", "nearest 5 wanted", "wanted head's loss",
)  # fmt: skip
BY_POOL = (
    "100 neighbours in the pool", "leave-one-out loss", "own head's loss", "audit, suspects",
)  # fmt: skip
BY_FOLDS = ("suspects by halves", "cross-validated loss", "confident learning")
JUNK = (*PLAIN, *BY_WANTED, "target or pool", *BY_POOL)
WRONG = (*PLAIN, *BY_WANTED, *BY_POOL, *BY_FOLDS)
APPLICABLE: dict[str, tuple[str, ...]] = {
    "junk 20 %": JUNK,
    "junk 50 %": JUNK,
    "junk 80 %": JUNK,
    "other labels 50 %": (*JUNK, "label filter"),
    "wrong labels 20 %": WRONG,
    "wrong labels 40 %": WRONG,
    "near copies 30 %": ("all data", "truth known", "random", "audit, copies", "cosine > 0.95"),
    "long tail 50:1": (
        "all data", "random", "equal, random", "equal, influence", "class weights", "logit adjustment",
    ),
    "clean": (
        *(name for name in WRONG if name not in ("truth known", "cross-validated loss")),
        "audit, copies", "cosine > 0.95",
    ),
}  # fmt: skip


def accuracy(model: nn.Module, test: TensorDataset) -> float:
    """Mean over the classes of the share that is right."""
    x, y = test.tensors
    with torch.no_grad():
        right = (model(x).argmax(1) == y).double()
    return float(torch.stack([right[y == k].mean() for k in y.unique()]).mean())


def measures(pool: Pool, kept: Tensor) -> Row:
    """What is bad among the kept and among the dropped."""
    bad, left = pool.bad_of(torch.arange(len(pool))), pool.bad_of(kept)
    dropped = len(pool) - len(kept)
    return {
        "kept_bad": left / len(kept) if len(kept) else None,
        "dropped": dropped / len(pool),
        "precision": (bad - left) / dropped if dropped and bad else None,
        "recall": (bad - left) / bad if bad else None,
    }


def work(pool: Pool, job: Job) -> Row:
    """Choose, train, and test."""
    name = job["method"]
    started = time.perf_counter()
    kept = METHODS[name](Task(pool, job["seed"]))
    seconds = time.perf_counter() - started
    data = both(pool, kept)
    loss = LOSSES[name](data.tensors[1]) if name in LOSSES else F.cross_entropy
    model = fitted(data, pool.classes, loss)
    return {
        "accuracy": accuracy(model, pool.test),
        **measures(pool, kept),
        "choosing_seconds": seconds,
    }


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for pool in options.pools:
            for method in APPLICABLE[pool]:
                if method in options.methods:
                    yield {"pool": pool, "method": method, "seed": seed}


def main() -> None:
    options = arguments()
    features = cache(lambda: load(options.features))
    sizes = Sizes(options.size, options.wanted)
    same = {
        "benchmark": "pools", "features": options.features.name if options.features else "digits",
        "size": sizes.pool, "wanted": sizes.wanted, "components": COMPONENTS, "decay": DECAY,
    }  # fmt: skip
    pool_of = cache(lambda name, seed: POOLS[name](Drawing(features(), sizes, seed)))
    Results(options.output, same).run(
        jobs(options), lambda job: work(pool_of(job["pool"], job["seed"]), job), options.minutes
    )
    show(*tables(read(options.output)))


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--features", type=Path, help="safetensors file (default: digits)")
    made.add_argument("--size", type=int, default=300, help="samples of a pool")
    made.add_argument("--wanted", type=int, default=50, help="wanted samples beside it")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    made.add_argument("--pools", nargs="+", choices=list(POOLS), default=list(POOLS))
    made.add_argument(
        "--methods", nargs="+", choices=list(METHODS), default=list(METHODS), metavar="METHOD"
    )
    made.add_argument("--minutes", type=float, help="begin no run after so many")
    made.add_argument("--output", type=Path, default=Path("runs/pools.jsonl"))
    return made.parse_args()


if __name__ == "__main__":
    main()
