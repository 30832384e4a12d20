"""Where the guarantee is exact: a linear head on frozen features, pruned and trained again.

    python examples/linear_probe.py
    python examples/features.py --data-dir CIFAR --output features.safetensors
    python examples/linear_probe.py --features features.safetensors --penalty 0.001

An L2-regularised softmax head is trained to convergence on all samples; part of them is pruned; and
scikit-learn trains the head again on the rest, from nothing, to convergence. Beside it the same
with random samples pruned. Without --features the features are the first 16 principal components of
scikit-learn's digits. The error in the last column is that of the predicted Newton shift.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from features import Features
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, ExactCurvature, InfluencePruner, Selection


@dataclass(frozen=True)
class Row:
    """One fraction: true shifts after retraining, test losses, and what was predicted."""

    fraction: float
    kept: int
    shift: float
    random_shift: float
    share_of_random: float
    newton_error: float
    bound: float
    test_loss_full: float
    test_loss: float
    random_test_loss: float


def digit_features() -> Features:
    x, y = load_digits(return_X_y=True)
    test = np.arange(len(y)) % 4 == 0
    components = PCA(16, random_state=0).fit(x[~test] / 16)
    low = torch.from_numpy(components.transform(x / 16))
    labels = torch.from_numpy(y)
    return Features(low[~test], labels[~test], low[test], labels[test])


class Probe:
    """A head on given features, and how to train it."""

    def __init__(self, features: Features, penalty: float) -> None:
        self.features, self.penalty = features, penalty
        self.x = with_ones(features.x)
        self.full = self.train(torch.arange(len(features.y)))

    def train(self, kept: Tensor) -> Tensor:
        """Converged weights and bias, shape (C, d + 1); the bias is penalised too."""
        fit = LogisticRegression(
            C=1 / (self.penalty * len(kept)), fit_intercept=False, solver="newton-cholesky",
            tol=1e-10, max_iter=200,
        ).fit(self.x[kept].numpy(), self.features.y[kept].numpy())  # fmt: skip
        return torch.from_numpy(fit.coef_)

    def shift(self, weights: Tensor) -> float:
        return float((weights - self.full).norm())

    def test_loss(self, weights: Tensor) -> float:
        outputs = with_ones(self.features.test_x) @ weights.T
        return float(F.cross_entropy(outputs, self.features.test_y))

    def select(self, fractions: list[float]) -> tuple[Selection, ...]:
        """One selection per fraction, from one pass over the samples."""
        return self.pruner().frontier(self.model(), fractions).selections

    def model(self) -> nn.Sequential:
        """The converged head."""
        model = nn.Sequential(nn.Linear(self.x.shape[1] - 1, len(self.full))).double()
        with torch.no_grad():
            model[0].weight.copy_(self.full[:, :-1])
            model[0].bias.copy_(self.full[:, -1])
        return model

    def pruner(self) -> InfluencePruner:
        """For the features, with the penalty as damping."""
        return InfluencePruner(
            TensorDataset(self.features.x.double(), self.features.y), budget=Budget(fraction=0.4),
            batch_size=2048, curvature=ExactCurvature(damping=self.penalty),
        )  # fmt: skip


def with_ones(x: Tensor) -> Tensor:
    return torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)


def compare(probe: Probe, selection: Selection, draws: int) -> Row:
    n, size = selection.num_samples, len(selection.pruned)
    ours = probe.train(selection.kept)
    shifts, losses = [], []
    for draw in range(draws):
        kept = np.random.default_rng(draw).permutation(n)[size:]
        weights = probe.train(torch.from_numpy(np.sort(kept)))
        shifts.append(probe.shift(weights))
        losses.append(probe.test_loss(weights))
    true, random = probe.shift(ours), float(np.mean(shifts))
    return Row(
        fraction=size / n, kept=n - size, shift=true, random_shift=random,
        share_of_random=true / random, newton_error=abs(selection.newton_shift - true) / true,
        bound=selection.bound or float("nan"), test_loss_full=probe.test_loss(probe.full),
        test_loss=probe.test_loss(ours), random_test_loss=float(np.mean(losses)),
    )  # fmt: skip


def show(rows: list[Row]) -> None:
    table = Table(
        "pruned", "kept", "true shift", "of random", "proved at most", "test loss, full", "ours",
        "random", "Newton error",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            f"{row.fraction:.1%}", f"{row.kept:,}", f"{row.shift:.3g}", f"{row.share_of_random:.2%}",
            f"{row.bound:.3g}", f"{row.test_loss_full:.5f}", f"{row.test_loss:.5f}",
            f"{row.random_test_loss:.5f}", f"{row.newton_error:.1%}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="a file of features.py")
    parser.add_argument("--penalty", type=float, default=0.01, help="lambda of the L2 penalty")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.1, 0.4, 0.7, 0.9])
    parser.add_argument("--draws", type=int, default=3, help="random sets per fraction")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    given = parser.parse_args()
    loaded = Features.load(given.features) if given.features else digit_features()
    head = Probe(loaded, given.penalty)
    results = [compare(head, selection, given.draws) for selection in head.select(given.fractions)]
    print(json.dumps([asdict(row) for row in results], indent=1)) if given.json else show(results)
