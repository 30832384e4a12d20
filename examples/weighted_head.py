"""A head that is fitted by scikit-learn to a tenth of the digits, with weights, beside that of all.

    python examples/weighted_head.py

The features are the first principal components of scikit-learn's digits. The last column is the
distance of the head from that of all samples, as a share of the norm of that one.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch.utils.data import TensorDataset

from prunesampler import Budget, ExactCurvature, InfluencePruner

PENALTY = 0.01
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--components", type=int, default=8, help="principal components")
parser.add_argument("--kept", type=float, default=0.1, help="share of the samples that are kept")
parser.add_argument("--draws", type=int, default=5, help="random sets to average over")
parser.add_argument("--spread", type=float, default=0.5, help="of the weights, at most")
parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
given = parser.parse_args()
x, y = load_digits(return_X_y=True)
test = np.arange(len(y)) % 4 == 0
components = PCA(given.components, random_state=0).fit(x[~test] / 16)
x = np.hstack([components.transform(x / 16), np.ones((len(x), 1))])  # the last one for the bias
x, y, test_x, test_y = x[~test], y[~test], x[test], y[test]


def fit(kept: np.ndarray, weights: np.ndarray | None = None) -> LogisticRegression:
    head = LogisticRegression(
        C=1 / (PENALTY * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
    )
    return head.fit(x[kept], y[kept], sample_weight=weights)


def tell(head: LogisticRegression) -> list[float]:
    far = np.linalg.norm(head.coef_ - full.coef_) / np.linalg.norm(full.coef_)
    return [log_loss(test_y, head.predict_proba(test_x)), head.score(test_x, test_y), float(far)]


full = fit(np.arange(len(y)))
model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 10, bias=False)).double()
model[0].weight.data = torch.from_numpy(full.coef_)
pruner = InfluencePruner(
    TensorDataset(torch.from_numpy(x), torch.from_numpy(y)), budget=Budget(fraction=1 - given.kept),
    curvature=ExactCurvature(damping=PENALTY), progress=False,
)  # fmt: skip
chosen, scores = pruner.select(model), pruner.measure(model)
orders = [np.random.default_rng(seed).permutation(len(y)) for seed in range(given.draws)]
pruned = [torch.from_numpy(np.sort(order[: len(chosen.pruned)])) for order in orders]

rows = {"all": tell(full)}
random = [replace(chosen, pruned=indices) for indices in pruned]
for name, selections in (("random", random), ("chosen", [chosen])):
    told = []
    for selection in selections:
        kept, weights = selection.kept.numpy(), pruner.weights(scores, selection, given.spread)
        told.append([tell(fit(kept)), tell(fit(kept, weights.numpy()))])
    rows[name], rows[f"{name}, weighted"] = np.mean(told, axis=0).tolist()
if given.json:
    print(json.dumps(rows))
else:
    print(
        f"{len(chosen.kept)} of {len(y)} samples kept, {scores.measurements.parameters} parameters"
    )
    print(f"{'':20}{'test loss':>10}{'accuracy':>10}{'distance':>10}")
    for name, (loss, accuracy, far) in rows.items():
        print(f"{name:20}{loss:10.4f}{accuracy:10.1%}{far:10.3%}")
