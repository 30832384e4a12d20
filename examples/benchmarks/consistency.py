"""Does the prediction come true? Predicted shifts and loss gaps against those after retraining.

    python examples/benchmarks/consistency.py
    python examples/benchmarks/consistency.py --features features.safetensors --penalty 0.001 \\
        --dataset imagefolder --data-dir CIFAR --train-size 5000 --output runs/consistency.jsonl

For a convex head on frozen features (without --features: scikit-learn's digits) and for a network
trained from nothing, sets of many sizes are pruned in four ways. Predicted, to first order, are the
change of the last layer's parameters, and the mean test loss with the parameters so changed less the
one before. Measured is the same after training again on the kept samples; the network from the same
first parameters and for as many steps. Its rows of fraction 0 train on all data in another order:
what is measured there is noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prunesampler.base.indices import complement
from prunesampler.select.scores import Scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from consistency_report import figure, tables
from data import Images
from features import Features
from linear_probe import Probe, digit_features, with_ones
from methods import Once, everything, pruner
from results import Job, Results, Row, read, show
from sets import SETS, pruned_set
from setting import MODELS, device, load, parser, recipe, settings
from training import Progress, fresh, head_inputs, train


class Head(NamedTuple):
    """A trained last layer: weights with the bias last (C, d + 1), test inputs and labels."""

    weights: Tensor
    test_x: Tensor
    test_y: Tensor

    def loss(self, change: Tensor | float = 0.0) -> float:
        """Mean test loss with the weights so changed."""
        return float(F.cross_entropy(self.test_x @ (self.weights + change).T, self.test_y))


def predicted_change(scores: Scores, pruned: Tensor) -> Tensor:
    """Of the weights, shape (C, d + 1): the influence leaves out what softmax does not see."""
    return scores.measurements.hessian.basis() @ scores.influence.shift(pruned)


def row(head: Head, predicted: Tensor, after: Head) -> Row:
    """Predicted and measured change, and what each does to the test loss."""
    change = after.weights - head.weights
    change = change - change.mean(0)  # softmax does not see what all classes have in common
    return {
        "predicted_shift": float(predicted.norm()),
        "shift": float(change.norm()),
        "predicted_gap": head.loss(predicted) - head.loss(),
        "gap": after.loss() - head.loss(),
    }


class Convex:
    """A head on frozen features, trained to convergence."""

    def __init__(self, features: Features, penalty: float) -> None:
        self._probe = Probe(features, penalty)
        self._scores = self._probe.pruner().measure(self._probe.model())
        self._head = self._after(self._probe.full)

    def _after(self, weights: Tensor) -> Head:
        data = self._probe.features
        return Head(weights, with_ones(data.test_x), data.test_y)

    def __call__(self, job: Job) -> Row:
        pruned = pruned_set(job["set"], self._scores, job["fraction"], job["seed"])
        weights = self._probe.train(complement(pruned, len(self._scores.influence)))
        return row(self._head, predicted_change(self._scores, pruned), self._after(weights))


class Deep:
    """A network trained from nothing; the last layer is the one that is predicted."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options, self._images = options, load(options)
        self._full = cache(self._trained_in_full)

    def _trained_in_full(self, seed: int) -> tuple[Scores, Head]:
        model = self._train(None, seed, order=seed)
        # Measuring takes the weight decay alone from the recipe, but a budget wants a fraction.
        any_fraction = recipe(self._options, 0.5, seed, warm=False)
        scores = pruner(Progress(self._images, any_fraction, model, 0)).measure(model)
        assert scores is not None
        return scores, head_of(model, self._images)

    def _train(self, kept: Tensor | None, seed: int, order: int) -> nn.Sequential:
        chosen = recipe(self._options, 0.0, order, warm=False)
        steps = chosen.pruned_steps(len(self._images.train))
        network = fresh(self._images, MODELS[self._options.model], seed)
        method = everything if kept is None else Once(lambda _: kept)
        return train(self._images, network, chosen, method, steps, device()).model

    def __call__(self, job: Job) -> Row:
        seed = job["seed"]
        scores, head = self._full(seed)
        if job["fraction"] == 0:
            again = self._train(None, seed, order=1000 + seed)
            return row(head, torch.zeros_like(head.weights), head_of(again, self._images))
        pruned = pruned_set(job["set"], scores, job["fraction"], seed)
        kept = complement(pruned, len(scores.influence))
        model = self._train(kept, seed, order=seed)
        return row(head, predicted_change(scores, pruned), head_of(model, self._images))


def head_of(model: nn.Sequential, images: Images) -> Head:
    """The last layer of one of our networks, with what it sees of the test images."""
    x, y = images.test.tensors
    last = model[1][-1]
    weights = torch.cat([last.weight, last.bias[:, None]], 1).detach().cpu().double()
    return Head(weights, with_ones(head_inputs(model, x)), y)


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    for seed in options.seeds:
        for fraction in options.head_fractions:
            for name in SETS if seed == options.seeds[0] else SETS[:2]:  # others have no chance
                yield {"model": "convex", "set": name, "fraction": fraction, "seed": seed}
    for seed in options.seeds:
        yield {"model": "deep", "set": "another order", "fraction": 0.0, "seed": seed}
        for fraction in options.fractions:
            for name in SETS:
                yield {"model": "deep", "set": name, "fraction": fraction, "seed": seed}


def main() -> None:
    options = arguments()
    results = Results(options.output, settings(options, "features", "penalty"))
    makers: dict[str, Callable[[], Convex | Deep]] = {
        "convex": cache(lambda: Convex(features_of(options), options.penalty)),
        "deep": cache(lambda: Deep(options)),
    }
    results.run(jobs(options), lambda job: makers[job["model"]]()(job), options.minutes)
    rows = read(options.output)
    show(*tables(rows))
    if options.plot and rows:
        figure(rows).savefig(options.plot, dpi=120)


def features_of(options: argparse.Namespace) -> Features:
    return Features.load(options.features) if options.features else digit_features()


def arguments() -> argparse.Namespace:
    made = parser(__doc__, "consistency.jsonl")
    made.add_argument("--features", type=Path, help="a file of features.py")
    made.add_argument("--penalty", type=float, default=0.01, help="lambda of the convex head")
    many = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    made.add_argument("--head-fractions", type=float, nargs="+", default=many)
    made.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.3, 0.5, 0.7, 0.9])
    made.add_argument("--plot", type=Path, help="draw a figure to this file")
    return made.parse_args()


if __name__ == "__main__":
    main()
