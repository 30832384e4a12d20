"""The methods that the accuracy benchmarks compare; each chooses before an epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from prunesampler import (
    Budget,
    ExactCurvature,
    IdentityCurvature,
    InfluencePruner,
    Objective,
    Price,
    costs,
)
from prunesampler.influence.curvature import Curvature
from prunesampler.select.rotation import older
from prunesampler.select.scores import Scores

sys.path.insert(0, str(Path(__file__).parents[1]))
from training import Method, Progress

Choice = tuple[Tensor, Tensor | None]
Cost = Callable[[Scores], Tensor]


def pruner(
    progress: Progress, *, center: bool = True, objective: Objective | None = None,
    curvature: Curvature | None = None,
) -> InfluencePruner:  # fmt: skip
    """Ours, with the weight decay of the training as damping."""
    recipe = progress.recipe
    curvature = curvature or ExactCurvature(damping=recipe.weight_decay)
    return InfluencePruner(
        progress.images.train, budget=Budget(fraction=recipe.fraction), progress=False,
        seed=recipe.seed, curvature=curvature, batch_size=1000,
        center=center, objective=objective,
    )  # fmt: skip


def measured(progress: Progress) -> Scores:
    """One pass over the training set, without augmentation, for scores that need no curvature."""
    scores = pruner(progress, curvature=IdentityCurvature()).measure(progress.model)
    assert scores is not None
    return scores


def everything(progress: Progress) -> Choice:
    """All data."""
    return torch.arange(progress.size), None


def redrawn_random(progress: Progress) -> Choice:
    """A random set, another in every epoch (RS2: Okanovic et al., ICLR 2024)."""
    return torch.randperm(progress.size, generator=progress.generator())[: progress.keep], None


class Once:
    """One set, chosen after the warm-up."""

    def __init__(self, choose: Callable[[Progress], Tensor]) -> None:
        self._choose = choose
        self._kept: Tensor | None = None

    def __call__(self, progress: Progress) -> Choice:
        if self._kept is None:
            self._kept = self._choose(progress)
        return self._kept, None


def random(progress: Progress) -> Tensor:
    return redrawn_random(progress)[0]


def highest(score: Tensor, keep: int) -> Tensor:
    return score.argsort(descending=True)[:keep]


def el2n(progress: Progress) -> Tensor:
    """The hardest by the length of the error vector (Paul et al., NeurIPS 2021)."""
    return highest(costs.el2n(measured(progress)), progress.keep)


def grand(progress: Progress) -> Tensor:
    """The largest gradients of the last layer (Paul et al., NeurIPS 2021, there of all layers)."""
    return highest(costs.grand(measured(progress)), progress.keep)


def forgetting(progress: Progress) -> Tensor:
    """The most often forgotten in the warm-up, never learned first (Toneva et al., ICLR 2019)."""
    never = ~progress.right & (progress.forgotten == 0)
    ties = torch.rand(progress.size, generator=progress.generator())  # most are never forgotten
    return highest(progress.forgotten.cpu() + never.cpu() * 1e6 + ties, progress.keep)


def moderate(progress: Progress) -> Tensor:
    """Around the median distance to the mean feature of the class (Xia et al., ICLR 2023).

    In equal shares of every class, and by the distance itself; their code takes ranks over all.
    """
    features, labels = measured(progress).measurements.inputs, progress.images.train.tensors[1]
    kept = []
    for label in range(progress.images.classes):
        members = (labels == label).nonzero().flatten()
        distance = (features[members] - features[members].mean(0)).norm(dim=1)
        unusual = (distance - distance.median()).abs().argsort()
        kept.append(members[unusual[: round(progress.keep / progress.size * len(members))]])
    return torch.cat(kept)


def coverage(progress: Progress, strata: int = 50) -> Tensor:
    """Coverage-centric (CCS: Zheng et al., ICLR 2023): every difficulty alike.

    As there for CIFAR-10, the hardest tenth is left out where more than half is pruned, and the
    hardest three tenths where nine tenths are.
    """
    score, fraction = costs.el2n(measured(progress)), progress.recipe.fraction
    dropped = 0.0 if fraction <= 0.5 else 0.1 if fraction < 0.9 else 0.3
    order = score.argsort()[: round((1 - dropped) * progress.size)]
    edges = torch.linspace(float(score[order[0]]), float(score[order[-1]]), strata + 1)[1:-1]
    stratum = torch.bucketize(score[order].float(), edges)
    groups = sorted((order[stratum == k] for k in range(strata)), key=len)
    kept, left = [], progress.keep
    for number, group in enumerate(groups):
        count = min(len(group), left // (strata - number))
        kept.append(group[torch.randperm(len(group), generator=progress.generator())[:count]])
        left -= count
    return torch.cat(kept)


def infobatch(progress: Progress) -> Choice:
    """Skip samples of less than the mean loss by chance, weigh the rest up (Qin et al., ICLR 2024).

    The chance is such that the budget is met on average; where that takes more than three in four,
    the easy are not those below the mean but below a higher quantile. Full epochs at the end, as in
    the paper: see `ideas`.
    """
    losses, most = progress.losses.cpu(), 0.75
    skip = progress.recipe.fraction * progress.size
    count = max(
        int((losses < losses[losses.isfinite()].mean()).sum()),
        min(progress.size, math.ceil(skip / most)),
    )
    easy = torch.zeros(progress.size, dtype=torch.bool)
    easy[losses.argsort()[:count]] = True
    chance = skip / count
    skipped = easy & (torch.rand(progress.size, generator=progress.generator()) < chance)
    kept = (~skipped).nonzero().flatten()
    return kept, torch.where(easy[kept], 1 / (1 - chance), 1.0)


@dataclass
class Influence:
    """Ours: one set, or measured and selected again, or drawn again from the same measurements."""

    center: bool = True
    objective: Objective | None = None
    refresh_every: int | None = None
    redraw_every: int | None = None

    def __post_init__(self) -> None:
        self._pruner: InfluencePruner | None = None
        self._scores: Scores | None = None
        self._kept = self._ages = torch.empty(0)

    def __call__(self, progress: Progress) -> Choice:
        since = progress.epoch - progress.recipe.warmup_epochs
        if self._pruner is None:
            self._pruner = pruner(progress, center=self.center, objective=self.objective)
            self._ages = torch.zeros(progress.size, dtype=torch.int64)
        anew = since == 0 or (self.refresh_every and since % self.refresh_every == 0)
        again = self.redraw_every and since % self.redraw_every == 0
        if anew:
            self._scores = self._pruner.measure(progress.model)
        if anew or again:
            selection = self._pruner.redraw(self._scores, self._ages)
            self._kept = selection.kept
            if self.redraw_every:
                self._ages = older(self._ages, selection.pruned)
        return self._kept, None


def easiness(scores: Scores) -> Tensor:
    """As a cost: prunes the hard."""
    return -costs.el2n(scores)


METHODS: dict[str, Callable[[], Method]] = {
    "all data": lambda: everything,
    "fewer epochs": lambda: everything,
    "random": lambda: Once(random),
    "random, redrawn": lambda: redrawn_random,
    "EL2N": lambda: Once(el2n),
    "GraNd": lambda: Once(grand),
    "forgetting": lambda: Once(forgetting),
    "moderate": lambda: Once(moderate),
    "coverage": lambda: Once(coverage),
    "InfoBatch": lambda: infobatch,
    "influence": Influence,
    "influence, literal": lambda: Influence(center=False),
    "influence, keep hard": lambda: Influence(objective=Price(costs.el2n, weight=0.5)),
    "influence, drop hard": lambda: Influence(objective=Price(easiness, weight=0.5)),
    "influence, refreshed": lambda: Influence(refresh_every=4),
    "influence, redrawn": lambda: Influence(redraw_every=1),
}
