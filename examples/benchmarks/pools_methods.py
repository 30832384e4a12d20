"""What pools.py compares: the head, rules that say which samples to keep, and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pools_data import Pool
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from prunesampler import (
    Audit,
    AutoCurvature,
    Budget,
    InfluencePruner,
    KeepHead,
    Objective,
    Price,
    Scores,
    Target,
    WantedLoss,
    cross_split,
    suspects_from,
)

DECAY = 3e-3
"""Weight decay of every head, also those that only judge."""
NEAREST, AROUND = 5, 100
ALIKE = 0.95
"""Cosine above which the trivial rule calls two samples copies."""
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """A pool, and a seed for what a method draws."""

    pool: Pool
    seed: int

    @property
    def kept(self) -> int:
        return len(self.pool) - self.pool.prune


Method = Callable[[Task], Tensor]
"""From a task to the samples of the pool that are kept."""


def fitted(data: TensorDataset, classes: int, loss: Loss = F.cross_entropy) -> nn.Sequential:
    """A linear head at the minimum of the mean loss and the weight decay."""
    x, y = data.tensors
    model = nn.Sequential(nn.Linear(x.shape[1], classes))
    weights = list(model.parameters())
    for weight in weights:
        nn.init.zeros_(weight)
    search = torch.optim.LBFGS(weights, max_iter=200, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        search.zero_grad()
        value = loss(model(x), y) + DECAY / 2 * sum(weight.square().sum() for weight in weights)
        value.backward()
        return value

    search.step(step)
    return model


def both(pool: Pool, kept: Tensor) -> TensorDataset:
    """What is trained on: the kept samples and the wanted ones."""
    x, y = pool.wanted.tensors
    return TensorDataset(torch.cat([pool.x[kept], x]), torch.cat([pool.y[kept], y]))


def own_head(pool: Pool) -> nn.Sequential:
    return fitted(pool.data, pool.classes)


def pruner(pool: Pool, objective: Objective, budget: Budget | None = None) -> InfluencePruner:
    """A pruner of the pool; no class needs to keep a sample, since some are junk as a whole."""
    chosen = Budget(count=pool.prune, min_per_class=0) if budget is None else budget
    return InfluencePruner(
        pool.data, budget=chosen, objective=objective, curvature=AutoCurvature(damping=DECAY),
        progress=False,
    )  # fmt: skip


def measured(pool: Pool, objective: Objective, model: nn.Sequential) -> Scores:
    found = pruner(pool, objective).measure(model)
    assert found is not None
    return found


def by(objective: Callable[[Pool], Objective]) -> Method:
    """Measure the pool with its own head and prune by an objective."""

    def method(task: Task) -> Tensor:
        made = pruner(task.pool, objective(task.pool))
        return made.choose_from(made.measure(own_head(task.pool))).kept

    return method


def own_probability(scores: Scores) -> Tensor:
    """Of each label, by the head as if it had not been trained on the sample."""
    labels = scores.labels
    assert labels is not None
    return scores.leave_one_out().gather(1, labels[:, None])[:, 0]


def found(name: str) -> Method:
    """What the audit finds goes, however much that is."""

    def method(task: Task) -> Tensor:
        objective = Target(task.pool.wanted) if name == "off_target" else KeepHead()
        audit: Audit = measured(task.pool, objective, own_head(task.pool)).audit()
        return without(task, audit.drop(name).prune)

    return method


def without(task: Task, gone: Any) -> Tensor:
    """All samples but these."""
    keeps = torch.ones(len(task.pool), dtype=torch.bool)
    keeps[gone] = False
    return keeps.nonzero()[:, 0]


def judged_by_halves(task: Task) -> Tensor:
    """Two heads, each on a half, judge the labels of the other half; suspects go."""
    split, pool = cross_split(len(task.pool), task.seed), task.pool
    first, second = (
        measured(pool, KeepHead(), fitted(TensorDataset(pool.x[half], pool.y[half]), pool.classes))
        for half in (split.first, split.second)
    )
    return without(task, suspects_from(first, second, split).indices)


def lowest(score: Callable[[Task], Tensor]) -> Method:
    """The samples of highest score go."""
    return lambda task: score(task).argsort(stable=True)[: task.kept].sort().values


def drawn(task: Task) -> Tensor:
    return torch.rand(len(task.pool), generator=torch.Generator().manual_seed(task.seed))


def loss_under(head: Callable[[Pool], nn.Sequential]) -> Callable[[Task], Tensor]:
    """Loss of each sample under a head."""

    def score(task: Task) -> Tensor:
        with torch.no_grad():
            return F.cross_entropy(head(task.pool)(task.pool.x), task.pool.y, reduction="none")

    return score


def wanted_head(pool: Pool) -> nn.Sequential:
    return fitted(pool.wanted, pool.classes)


def far_from_wanted(task: Task) -> Tensor:
    """Mean cosine distance to the nearest wanted samples of the same label; two where there are none."""
    pool, (x, y) = task.pool, task.pool.wanted.tensors
    cosines = F.normalize(pool.x, dim=1) @ F.normalize(x, dim=1).T
    nearest = cosines.masked_fill(pool.y[:, None] != y, torch.nan).nan_to_num(-2.0)
    nearest = nearest.topk(NEAREST, dim=1).values
    return 1 - nearest.where(nearest > -2, torch.nan).nanmean(1).nan_to_num(-1.0)


def unlike_neighbours(task: Task) -> Tensor:
    """Share of the nearest samples of the pool, by cosine, that have another label; needs no wanted samples."""
    x, y = F.normalize(task.pool.x, dim=1), task.pool.y
    nearest = (x @ x.T).fill_diagonal_(-2.0).topk(AROUND, dim=1).indices
    return (y[nearest] != y[:, None]).double().mean(1)


def regression(samples: int) -> LogisticRegression:
    """Scikit-learn's, with the weight decay that the heads have."""
    return LogisticRegression(C=1 / (DECAY * samples), max_iter=300, tol=1e-3)


def unlike_wanted(task: Task) -> Tensor:
    """Minus the log odds of being a wanted sample rather than one of the pool, by the features alone."""
    x, _ = task.pool.wanted.tensors
    features = np.concatenate([task.pool.x.numpy(), x.numpy()])
    is_wanted = np.arange(len(features)) >= len(task.pool)
    model = regression(len(features)).set_params(class_weight="balanced").fit(features, is_wanted)
    return -torch.from_numpy(model.decision_function(task.pool.x.numpy()))


def out_of_fold(task: Task) -> Tensor:
    """Probability of every class by the other four of five folds, shape (n, C)."""
    pool = task.pool
    folds = StratifiedKFold(5, shuffle=True, random_state=task.seed)
    p = cross_val_predict(
        regression(len(pool)), pool.x.numpy(), pool.y.numpy(), cv=folds, method="predict_proba"
    )
    return torch.from_numpy(p)


def cross_validated_loss(task: Task) -> Tensor:
    return -out_of_fold(task).gather(1, task.pool.y[:, None])[:, 0].clamp(min=1e-30).log()


def confident_learning(task: Task) -> Tensor:
    """Samples go of which another class is as probable as it is for those that have its label.

    Source: Northcutt et al., "Confident learning", JAIR 2021, equation 2, all off-diagonal samples.
    """
    p, y = out_of_fold(task), task.pool.y
    usual = torch.stack([p[y == k, k].mean() for k in range(p.shape[1])])
    confident = torch.where(p >= usual, p, 0.0)
    gone = (confident.amax(1) > 0) & (confident.argmax(1) != y)
    return (~gone).nonzero()[:, 0]


def filtered(task: Task) -> Tensor:
    """Samples go whose label no wanted sample has."""
    return torch.isin(task.pool.y, task.pool.wanted.tensors[1]).nonzero()[:, 0]


def without_neighbours(task: Task) -> Tensor:
    """Samples go that have one very much like them before."""
    x = F.normalize(task.pool.x, dim=1)
    before = (x @ x.T > ALIKE).tril(-1)
    return (~before.any(1)).nonzero()[:, 0]


def everything(task: Task) -> Tensor:
    return torch.arange(len(task.pool))


def truth(task: Task) -> Tensor:
    return task.pool.good().nonzero()[:, 0]


def equal(objective: Callable[[Task], Objective]) -> Method:
    """As many of every class as there are, up to a number."""

    def method(task: Task) -> Tensor:
        budget = Budget(count=task.pool.prune, per_class="equal")
        made = pruner(task.pool, objective(task), budget)
        return made.choose_from(made.measure(own_head(task.pool))).kept

    return method


def by_class_weights(labels: Tensor) -> Loss:
    """Every class counts as much, whatever its number of samples."""
    counts = torch.bincount(labels)
    weights = len(labels) / (len(counts) * counts.clamp(min=1))
    return lambda logits, y: (weights[y] * F.cross_entropy(logits, y, reduction="none")).mean()


def adjusted(labels: Tensor) -> Loss:
    """Logits adjusted by the class counts (Menon et al., "Long-tail learning via logit adjustment", ICLR 2021)."""
    prior = (torch.bincount(labels) / len(labels)).clamp(min=math.exp(-30)).log()
    return lambda logits, y: F.cross_entropy(logits + prior, y)


LOSSES: dict[str, Callable[[Tensor], Loss]] = {
    "class weights": by_class_weights,
    "logit adjustment": adjusted,
}
METHODS: dict[str, Method] = {
    "all data": everything,
    "wanted alone": lambda task: torch.arange(0),
    "truth known": truth,
    "random": lowest(drawn),
    "Target": by(lambda pool: Target(pool.wanted)),
    "audit, off-target": found("off_target"),
    "WantedLoss": by(lambda pool: WantedLoss(pool.wanted, shift=False)),
    "leave-one-out loss": by(lambda pool: Price(own_probability, shift=False)),
    "audit, suspects": found("suspects"),
    "suspects by halves": judged_by_halves,
    "audit, copies": found("copies"),
    "label filter": filtered,
    "target or pool": lowest(unlike_wanted),
    "nearest 5 wanted": lowest(far_from_wanted),
    "100 neighbours in the pool": lowest(unlike_neighbours),
    "wanted head's loss": lowest(loss_under(wanted_head)),
    "own head's loss": lowest(loss_under(own_head)),
    "cross-validated loss": lowest(cross_validated_loss),
    "confident learning": confident_learning,
    "cosine > 0.95": without_neighbours,
    "equal, influence": equal(lambda task: KeepHead()),
    "equal, random": equal(lambda task: Price(drawn(task), shift=False)),
    "class weights": everything,
    "logit adjustment": everything,
}
