"""Bad samples in a network that trains for long: what judges them, and what dropping them is worth.

    python examples/benchmarks/memorising.py
    python examples/benchmarks/memorising.py --images CIFAR --epochs 30 --half --output runs/memorising.jsonl
    python examples/benchmarks/memorising.py --pool junk --share 0.2 0.5 0.8 --images CIFAR --epochs 12 --half \\
        --features features.safetensors --output runs/junk.jsonl

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg; without it, these are scikit-learn's digits. A share of the
training labels is drawn anew among the other classes; or, with --pool junk, half of the classes are wanted, and
a share of the samples is of the others, under wanted labels, with 50 sure samples of each wanted class. Every
method costs as many optimiser steps as --epochs on all data, its choosing included, but for all data at a third
and two thirds of that, where less has been memorised. "Cross-split" spends a third of the steps on two networks
that each see one half, judge the other half's labels, and trains on what is left. "Target" and "audit" spend them
on one network and look at its features with the sure samples; the first is told how many are bad. Their rivals:
small loss (a third of the steps on all data, and the largest errors of that run go, as many as are bad), label
smoothing, the nearest sure samples of the label (told how many), and the truth. Those called "pretrained" look at
features of a network that was trained on other images, which pretrained.py writes: they spend no steps on choosing,
so that their rival is the truth with all steps. Seconds are those of one processor core, without pretrained.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from fast import Plan, Run, train
from memorising_report import WHOLE, tables
from pools_data import load as load_features
from pools_methods import DECAY, fitted
from results import Job, Results, Row, read, show
from spoiled import POOLS, Spoiled
from time_to_accuracy import load

from prunesampler import (
    AutoCurvature,
    Budget,
    Constraints,
    IdentityCurvature,
    InfluencePruner,
    Scores,
    Target,
    cross_split,
    suspects_from,
)
from prunesampler.base.indices import complement
from prunesampler.pool.wanted import believed, doubts

CHOOSING = 1 / 3
"""Share of the steps that choosing may take."""
LAST = 3
"""Epochs at the end of a run whose mean error tells a small loss from a large one."""
PRETRAINED = "pretrained"
"""Ends the name of a method that looks at features of a network that was trained on other images."""


@dataclass
class Outcome:
    """A run, what it was trained on, the seconds of what came before, and what the features judged by are worth."""

    run: Run
    kept: Tensor
    before: float = 0.0
    right: float | None = None


Method = Callable[[Spoiled, Plan], Outcome]


def all_data(share: float = 1.0, smoothing: float | None = None) -> Method:
    """Everything, for a share of the epochs."""

    def method(pool: Spoiled, plan: Plan) -> Outcome:
        given = plan.smoothing if smoothing is None else smoothing
        shorter = replace(plan, epochs=max(1, round(share * plan.epochs)), smoothing=given)
        return Outcome(train(pool.images, shorter), torch.arange(len(pool.bad)))

    return method


def on_the_rest(pool: Spoiled, plan: Plan, kept: Tensor, share: float, before: float) -> Outcome:
    """Train on what is kept, for a share of the steps."""
    steps = share * plan.epochs * len(pool.bad)
    return Outcome(
        train(pool.only(kept), replace(plan, epochs=round(steps / len(kept)))), kept, before
    )


def cross_split_method(times: float) -> Method:
    """Drop what the network that did not see it does not believe."""

    def method(pool: Spoiled, plan: Plan) -> Outcome:
        split = cross_split(len(pool.bad), plan.seed)
        started, scores = time.process_time(), []
        pruner = InfluencePruner(
            pool.images.train, budget=Budget(fraction=0.5), curvature=IdentityCurvature(), batch_size=1000,
            progress=False,
        )  # fmt: skip
        for half in (split.first, split.second):
            run = train(
                pool.only(half), replace(plan, epochs=max(1, round(CHOOSING * plan.epochs)))
            )
            scores.append(pruner.measure(run.model))
        found = suspects_from(*scores, split, times=times)
        kept = complement(found.indices.sort().values, len(pool.bad))
        return on_the_rest(pool, plan, kept, 1 - CHOOSING, time.process_time() - started)

    return method


Judged = tuple[Spoiled, nn.Module, AutoCurvature, float]
"""A pool as a model sees it, the model, the curvature of its last layer's loss, and the share of steps that are left."""


def own_network(pool: Spoiled, plan: Plan) -> Judged:
    """A network that is trained on the pool for as long as choosing may take."""
    shorter = replace(plan, epochs=max(1, round(CHOOSING * plan.epochs)))
    return pool, train(pool.images, shorter).model, AutoCurvature(), 1 - CHOOSING


def pretrained(pool: Spoiled, plan: Plan) -> Judged:
    """A linear head on the features of a network that was trained on other data."""
    seen = pool.seen()
    model = fitted(seen.images.train, seen.images.classes)
    return seen, model, AutoCurvature(damping=DECAY), 1.0


def looked_at(
    choose: Callable[[Spoiled, Scores, InfluencePruner], Tensor],
    judge: Callable[[Spoiled, Plan], Judged],
) -> Method:
    """Drop what features say beside those of the sure samples; these stay."""

    def method(pool: Spoiled, plan: Plan) -> Outcome:
        started = time.process_time()
        seen, model, curvature, left = judge(pool, plan)
        pruner = InfluencePruner(
            seen.images.train, budget=Budget(count=int(pool.bad.sum()), min_per_class=0), batch_size=1000,
            objective=Target(seen.sure()), constraints=Constraints(keep=pool.wanted), progress=False,
            curvature=curvature,
        )  # fmt: skip
        scores = pruner.measure(model)
        assert scores is not None
        kept = torch.cat([choose(pool, scores, pruner), pool.wanted]).unique()
        before = time.process_time() - started
        held = scores.measurements
        found = doubts(held, scores.wanted, believed(held, scores.influence))
        outcome = on_the_rest(pool, plan, kept, left, before)
        return replace(outcome, right=found.right)

    return method


def by_target(pool: Spoiled, scores: Scores, pruner: InfluencePruner) -> Tensor:
    """Told how many are bad."""
    return pruner.choose_from(scores).kept


def by_audit(pool: Spoiled, scores: Scores, pruner: InfluencePruner) -> Tensor:
    """Told nothing."""
    return complement(scores.audit().off_target.indices, len(pool.bad))


def by_neighbours(pool: Spoiled, scores: Scores, pruner: InfluencePruner) -> Tensor:
    """As many go as are bad: those least like the five nearest sure samples of their label."""
    held, sure = scores.measurements, scores.wanted
    x, z = (F.normalize(m.tokens.inputs - held.tokens.inputs.mean(0), dim=1) for m in (held, sure))
    cosines = (x @ z.T).masked_fill(held.labels[:, None] != sure.labels, -1.0)
    likeness = cosines.topk(5, dim=1).values.mean(1)
    return likeness.argsort()[int(pool.bad.sum()) :]


def small_loss(pool: Spoiled, plan: Plan) -> Outcome:
    """Drop as many as are bad, those of the largest errors in a run on all data."""
    first = train(pool.images, replace(plan, epochs=max(1, round(CHOOSING * plan.epochs))))
    errors = first.trajectory.errors[-LAST:].float().nanmean(0).nan_to_num(0.0)
    kept = errors.argsort()[: int((~pool.bad).sum())].sort().values
    return on_the_rest(pool, plan, kept, 1 - CHOOSING, first.seconds)


def truth(share: float) -> Method:
    """Train on the right labels, for a share of the steps."""
    return lambda pool, plan: on_the_rest(pool, plan, (~pool.bad).nonzero()[:, 0], share, 0.0)


COMMON: dict[str, Method] = {
    WHOLE: all_data(),
    "all data, two thirds as long": all_data(2 / 3),
    "all data, a third as long": all_data(1 / 3),
    "all data, without label smoothing": all_data(smoothing=0.0),
    "small loss": small_loss,
    "truth known": truth(1 - CHOOSING),
    "truth known, all steps": truth(1.0),
}
METHODS: dict[str, dict[str, Method]] = {
    "wrong labels": {
        **COMMON,
        "cross-split": cross_split_method(2.0),
        "cross-split, all that disagree": cross_split_method(1.0),
    },
    "junk": {
        **COMMON,
        "Target": looked_at(by_target, own_network),
        "audit, off-target": looked_at(by_audit, own_network),
        "nearest sure of the label": looked_at(by_neighbours, own_network),
        f"Target, {PRETRAINED}": looked_at(by_target, pretrained),
        f"audit, {PRETRAINED}": looked_at(by_audit, pretrained),
        f"nearest, {PRETRAINED}": looked_at(by_neighbours, pretrained),
    },
}
NAMES = list(dict.fromkeys(name for methods in METHODS.values() for name in methods))


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for share in options.share:
            for method in options.methods:
                of_features = method.endswith(PRETRAINED)
                if method not in METHODS[options.pool] or (of_features and not options.features):
                    continue
                rates = options.rates if method == WHOLE else options.rates[:1]
                for rate in rates:
                    yield {"share": share, "method": method, "seed": seed, "rate": rate}


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)
    settings = {
        "benchmark": "memorising", "pool": options.pool, "images": options.images.name if options.images else "digits",
        "epochs": options.epochs, "width": options.width, "lr": options.lr, "batch_size": options.batch_size,
        "half": options.half,
    }  # fmt: skip
    if options.features:
        settings["features"] = options.features.name
    features = cache(lambda: load_features(options.features).x)
    results = Results(options.output, settings)

    def work(job: Job) -> Row:
        pool = POOLS[options.pool](load(options.images, options.cache), job["share"], job["seed"])
        pool = pool.looked_at(features()) if job["method"].endswith(PRETRAINED) else pool
        plan = Plan(
            options.epochs, options.lr * job["rate"], options.width, job["seed"], batch_size=options.batch_size,
            half=options.half,
        )  # fmt: skip
        outcome = METHODS[options.pool][job["method"]](pool, plan)
        gone = complement(outcome.kept, len(pool.bad))
        return {
            "accuracy": outcome.run.accuracy, "seconds": outcome.run.seconds + outcome.before,
            "kept_bad": float(pool.bad[outcome.kept].float().mean()), "dropped": len(gone) / len(pool.bad),
            "precision": float(pool.bad[gone].float().mean()) if len(gone) else 0.0, "right": outcome.right,
        }  # fmt: skip

    results.run(jobs(options), work, options.minutes)
    show(*tables(read(options.output, *options.more)))


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--images", type=Path, help="folder of train/ and test/ (default: digits)")
    made.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    made.add_argument("--features", type=Path, help="of a pretrained network, by pretrained.py")
    made.add_argument("--pool", choices=list(POOLS), default="wrong labels", help="what is bad")
    made.add_argument("--share", type=float, nargs="+", default=[0.4], help="shares that are bad")
    made.add_argument("--epochs", type=int, default=30)
    made.add_argument("--width", type=float, default=0.25, help="1 is 64, 256 and 256 channels")
    made.add_argument("--lr", type=float, default=0.4)
    made.add_argument(
        "--rates", type=float, nargs="+", default=[1.0, 0.5], help="of all data, relative to --lr"
    )
    made.add_argument("--half", action="store_true", help="compute in bfloat16")
    made.add_argument("--batch-size", type=int, help="default: 500, of digits 50")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    made.add_argument("--methods", nargs="+", choices=NAMES, default=NAMES, metavar="METHOD")
    made.add_argument("--minutes", type=float, help="begin no run after")
    made.add_argument("--output", type=Path, default=Path("runs/memorising.jsonl"))
    made.add_argument(
        "--more", type=Path, nargs="+", default=[], help="files of the same settings to show, too"
    )
    options = made.parse_args()
    options.batch_size = options.batch_size or (500 if options.images else 50)
    return options


if __name__ == "__main__":
    main()
