"""A backbone trained on half of the classes, adapted to the other half with part of the data.

    python examples/benchmarks/finetuning.py
    python examples/benchmarks/finetuning.py --dataset imagefolder --data-dir CIFAR --train-size 5000 \\
        --epochs 8 --warmup-epochs 2 --lr 0.02 --output runs/finetuning.jsonl

Frozen: only a new linear layer is trained, L2-regularised and to convergence; the sets are chosen with
the layer of all data. Unfrozen: everything is trained, all methods for as many steps, the sets chosen
after the warm-up. `--train-size` counts the samples of the new classes; the backbone sees all of the old.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from rich.table import Table
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler.base.indices import complement
from prunesampler.select.scores import Scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images
from features import Features
from ideas import IDEAS
from linear_probe import Probe, with_ones
from methods import METHODS, everything
from plots import accuracy_by_fraction
from results import Job, Results, Row, points, read, show, spread
from sets import pruned_set
from setting import MODELS, device, load_all, measures, parser, recipe, settings
from training import fresh, head_inputs, train

FROZEN = {"random": "random", "EL2N": "keep hard", "influence": "influence"}
UNFROZEN = (
    "fewer epochs", "fewer epochs, larger steps", "random", "random, redrawn", "EL2N", "InfoBatch",
    "influence", "influence, keep hard", "influence, redrawn",
)  # fmt: skip


class Adapting:
    """The backbone of a seed, the new samples, and how to train on them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._images = options, load_all(options)
        self._half = self._images.classes // 2
        if self._half < 3:
            raise SystemExit(
                f"the images have {self._images.classes} classes: half of them must be 3 or more"
            )
        self._backbone = cache(self._trained_backbone)
        self._probe = cache(self._fitted_probe)

    def _part(self, old: bool) -> Images:
        """The images of the old or of the new classes, labelled from 0 on."""
        parts = []
        for x, y in (self._images.train.tensors, self._images.test.tensors):
            wanted = (y < self._half) == old
            parts.append(TensorDataset(x[wanted], y[wanted] if old else y[wanted] - self._half))
        classes = self._half if old else self._images.classes - self._half
        return replace(self._images, train=parts[0], test=parts[1], classes=classes)

    def _new(self) -> Images:
        size, images = self._options.train_size, self._part(old=False)
        return images if size is None else images.first(size)

    def _trained_backbone(self, seed: int) -> nn.Sequential:
        images = self._part(old=True)
        plain = recipe(self._options, 0.0, seed, warm=False)
        chosen = replace(plain, epochs=self._options.backbone_epochs, lr=0.1)
        network = fresh(images, MODELS[self._options.model], seed)
        steps = chosen.full_steps(len(images.train))
        return train(images, network, chosen, everything, steps, device()).model

    def _fitted_probe(self, seed: int) -> tuple[Probe, Scores]:
        images = self._new()
        (x, y), (test_x, test_y) = images.train.tensors, images.test.tensors
        x, test_x = (head_inputs(self._backbone(seed), part) for part in (x, test_x))
        probe = Probe(Features(x, y, test_x, test_y), self._options.penalty)
        scores = probe.pruner().measure(probe.model())
        assert scores is not None
        return probe, scores

    def frozen(self, job: Job) -> Row:
        probe, scores = self._probe(job["seed"])
        weights = probe.full
        if job["method"] != "all data":
            pruned = pruned_set(FROZEN[job["method"]], scores, job["fraction"], job["seed"])
            weights = probe.train(complement(pruned, len(probe.features.y)))
        right = (with_ones(probe.features.test_x) @ weights.T).argmax(1) == probe.features.test_y
        return {"accuracy": float(right.double().mean()), "test_loss": probe.test_loss(weights)}

    def unfrozen(self, job: Job) -> Row:
        images, seed = self._new(), job["seed"]
        model = copy.deepcopy(self._backbone(seed))
        torch.manual_seed(seed)
        model[1][-1] = nn.Linear(model[1][-1].in_features, images.classes)
        chosen = recipe(self._options, job["fraction"], seed)
        steps = chosen.pruned_steps(len(images.train))
        method = {**METHODS, **IDEAS}[job["method"]]()
        return measures(train(images, model, chosen, method, steps, device()))


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for layers, methods in (("frozen", FROZEN), ("unfrozen", UNFROZEN)):
            yield {"layers": layers, "method": "all data", "fraction": 0.0, "seed": seed}
            for fraction in options.fractions:
                for method in methods:
                    yield {"layers": layers, "method": method, "fraction": fraction, "seed": seed}


def tables(rows: list[Row]) -> list[Table]:
    """One for the frozen backbone, one for the other."""
    return [table(rows, layers) for layers in dict.fromkeys(row["layers"] for row in rows)]


def table(rows: list[Row], layers: str) -> Table:
    """Accuracy by method and fraction, and below each the difference to random."""
    chosen = [row for row in rows if row["layers"] == layers]
    fractions = sorted({row["fraction"] for row in chosen})
    groups = defaultdict(list)
    for row in chosen:
        groups[row["method"], row["fraction"]].append(row)
    shown = Table(layers, *(f"{fraction:.0%} pruned" for fraction in fractions))
    for method in dict.fromkeys(row["method"] for row in chosen):
        cells = (groups[method, fraction] for fraction in fractions)
        shown.add_row(method, *(spread([100 * row["accuracy"] for row in runs]) for runs in cells))
        if method not in ("all data", "random"):
            shown.add_row("  to random", *(
                spread(points(groups[method, fraction], groups["random", fraction]), "+.1f")
                for fraction in fractions
            ))  # fmt: skip
    return shown


def main() -> None:
    options = arguments()
    results = Results(options.output, settings(options, "backbone_epochs", "penalty"))
    adapting = cache(lambda: Adapting(options))

    def work(job: Job) -> Row:
        adapt = adapting().frozen if job["layers"] == "frozen" else adapting().unfrozen
        return adapt(job)

    results.run(jobs(options), work, options.minutes)
    rows = read(options.output)
    show(*tables(rows))
    if options.plot and rows:
        accuracy_by_fraction(rows, "layers").savefig(options.plot, dpi=120)


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "finetuning.jsonl")
    made.add_argument("--backbone-epochs", type=int, default=8)
    made.add_argument("--penalty", type=float, default=0.001, help="lambda of the frozen head")
    made.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    made.add_argument("--plot", type=Path, help="draw a figure to this file")
    return made.parse_args()


if __name__ == "__main__":
    main()
