"""Predicted against true parameter change, on scikit-learn's digits with a convex head.

An L2-regularised softmax head is trained to convergence on pixels / 16. Samples are removed and
scikit-learn's LogisticRegression retrains, knowing nothing of influence. Prints a table; with
--json, one JSON object instead.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, CrossEntropy, ExactCurvature, HeadGradients, InfluencePruner
from prunesampler.base.indices import complement
from prunesampler.influence.certificate import newton_shift
from prunesampler.influence.influence import Influence

PENALTY = 0.01


def retrain(x: np.ndarray, y: np.ndarray) -> Tensor:
    """Weights and bias, shape (10, D + 1), of the converged head; the bias is penalised too."""
    ones = np.ones((len(x), 1))
    fit = LogisticRegression(
        C=1 / (PENALTY * len(x)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
    ).fit(np.hstack([x, ones]), y)
    return torch.from_numpy(fit.coef_)


@dataclass
class Problem:
    """Data, the head trained on all of it, and what prunesampler measures there."""

    x: np.ndarray
    y: np.ndarray

    def __post_init__(self) -> None:
        self.full = retrain(self.x, self.y)
        self.model = nn.Sequential(nn.Linear(self.x.shape[1], 10)).double()
        with torch.no_grad():
            self.model[0].weight.copy_(self.full[:, :-1])
            self.model[0].bias.copy_(self.full[:, -1])
        self.data = TensorDataset(torch.from_numpy(self.x), torch.from_numpy(self.y))
        self.gradients = HeadGradients("0", CrossEntropy())(self.model, self.data[:])
        self.curvature = ExactCurvature(damping=PENALTY)
        self.influence = Influence.build(
            self.gradients.rows(), self.curvature.factorise(self.gradients)
        )
        self.basis = self.gradients.hessian.basis()

    def true(self, pruned: Tensor) -> Tensor:
        kept = complement(pruned, len(self.y)).numpy()
        return retrain(self.x[kept], self.y[kept]) - self.full

    def first_order(self, pruned: Tensor) -> Tensor:
        return self.basis @ self.influence.shift(pruned)

    def newton(self, pruned: Tensor) -> Tensor:
        kept = self.gradients[complement(pruned, len(self.y))]
        factor = self.curvature.factorise(kept, PENALTY)
        return self.basis @ newton_shift(factor, self.influence, pruned)

    def random(self, fraction: float, draw: int) -> Tensor:
        n = len(self.y)
        drawn = np.random.default_rng(draw).choice(n, round(fraction * n), replace=False)
        return torch.from_numpy(np.sort(drawn))

    def selected(self, fraction: float) -> Tensor:
        pruner = InfluencePruner(
            self.data, budget=Budget(fraction=fraction), curvature=self.curvature, progress=False
        )
        return pruner.select(self.model).pruned


def relative_error(predicted: Tensor, true: Tensor) -> float:
    return float((predicted - true).norm() / true.norm())


def single_samples(problem: Problem, count: int) -> dict[str, float]:
    chosen = np.random.default_rng(0).choice(len(problem.y), count, replace=False)
    errors, cosines = [], []
    for index in chosen:
        pruned = torch.tensor([int(index)])
        true, predicted = problem.true(pruned).flatten(), problem.first_order(pruned).flatten()
        errors.append(relative_error(predicted, true))
        cosines.append(float(torch.cosine_similarity(predicted, true, dim=0)))
    return {"median_relative_error": float(np.median(errors)), "min_cosine": min(cosines)}


def random_groups(problem: Problem, fraction: float, draws: int) -> dict[str, float]:
    first, newton = [], []
    for draw in range(draws):
        pruned = problem.random(fraction, draw)
        true = problem.true(pruned)
        first.append(relative_error(problem.first_order(pruned), true))
        newton.append(relative_error(problem.newton(pruned), true))
    return {"first_order_error": float(np.median(first)), "newton_error": float(np.median(newton))}


def selected_groups(problem: Problem, fraction: float, draws: int) -> dict[str, float]:
    norms = [float(problem.true(problem.random(fraction, d)).norm()) for d in range(draws)]
    pruned = problem.selected(fraction)
    true = problem.true(pruned)
    return {
        "true_shift": float(true.norm()),
        "random_true_shift": float(np.mean(norms)),
        "share_of_random": float(true.norm()) / float(np.mean(norms)),
        "first_order_error": relative_error(problem.first_order(pruned), true),
        "newton_error": relative_error(problem.newton(pruned), true),
    }


def measure(singles: int, draws: int) -> dict[str, dict[str, float]]:
    x, y = load_digits(return_X_y=True)
    pixels = Problem(x / 16, y)
    components = Problem(PCA(16, random_state=0).fit_transform(x / 16), y)
    return {
        f"{singles} single samples": single_samples(pixels, singles),
        "10 % at random": random_groups(pixels, 0.1, draws),
        "40 % at random": random_groups(pixels, 0.4, draws),
        "40 % selected": selected_groups(pixels, 0.4, draws),
        "40 % selected, 16 components": selected_groups(components, 0.4, draws),
    }


def show(results: dict[str, dict[str, float]]) -> None:
    table = Table("removed", "measure", "value", title="digits, softmax head, lambda = 0.01")
    for removed, values in results.items():
        for measure_name, value in values.items():
            table.add_row(removed, measure_name.replace("_", " "), f"{value:.4f}")
            removed = ""
    Console().print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--singles", type=int, default=40, help="single samples to remove")
    parser.add_argument("--draws", type=int, default=5, help="random sets per size")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = measure(arguments.singles, arguments.draws)
    print(json.dumps(found, indent=1)) if arguments.json else show(found)
