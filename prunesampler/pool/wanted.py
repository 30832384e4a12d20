"""How little each label of a pool is believed, by wanted samples and by the pool itself.

Each gives two opinions: a layer's, ``-log p(label)``, and that of the nearest neighbours. Opinions that differ in
where they err beat the best of them; all four are brought to mean zero and variance one over the pool, and added.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prunesampler.influence.automatic import BlockCurvature
from prunesampler.influence.curvature import ExactCurvature
from prunesampler.influence.hessians import SoftmaxHessian
from prunesampler.influence.influence import Influence
from prunesampler.influence.leave_one_out import check_classes, is_exact, leave_one_out
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured
from prunesampler.influence.top_rows import TopHessian
from prunesampler.pool.opinions import by_pool, by_wanted

COMPONENTS = 128
"""Principal components of the features that the wanted samples' layer sees."""
LOOKED_AT = 8192
"""Samples of the pool from which they are found."""
PENALTIES = tuple(10 ** (k / 2) for k in range(-8, 1))
"""Weight decays that are tried, for features of variance one."""
LEAST = 1e-6
"""Probability below which a label is not believed less still: one outlier would outweigh all others."""
UNLABELLED = (
    "the class of each sample is not known, without which no label can be doubted; measure with "
    "losses=CrossEntropy() on class indices"
)
ERRORS = 2.5
"""Standard errors above which a share of off-target samples is no chance."""
EXACT = 2048
"""Size R up to which the leave-one-out loss is exact."""


@dataclass(frozen=True)
class Doubts:
    """How little labels are believed, in standard deviations over the pool.

    Args:
        pool: Of the pool's n samples, shape (n,), float64.
        wanted: Of the m wanted samples, each judged by layers that were not trained on it, shape (m,).
        unknown: Which of the pool's samples have a label that no wanted sample has, boolean, shape (n,); they
            are doubted most.
        right: Share of the wanted samples on which the layer fitted to the others is right: what these
            features are worth.
    """

    pool: Tensor
    wanted: Tensor
    unknown: Tensor
    right: float = 1.0

    @property
    def known(self) -> bool:
        """Whether the features tell more of the wanted samples' classes than not: else they judge no label."""
        return self.right > 0.5

    def off_target(self) -> Tensor:
        """The samples that the wanted are not like, the most doubted first, int64, shape (k,).

        How many: were all of the pool like the wanted, half of it would be doubted less than their median
        is. As far as it is less than half, the rest is something else. None where that could be chance, two
        and a half standard errors; for junk that is doubted as little as the wanted, it is too few.

        Source of the estimate: Storey, "A direct approach to false discovery rates", JRSS B 2002.

        Examples:
            >>> like, junk = torch.linspace(0, 1, 400), torch.linspace(2, 3, 100)
            >>> found = Doubts(torch.cat([like, junk]), torch.linspace(0, 1, 401), torch.zeros(500) > 0)
            >>> len(found.off_target()), int(found.off_target().min())
            (100, 400)
        """
        below = float((self.pool <= self.wanted.quantile(0.5)).double().mean())
        share = 1 - 2 * below
        if share < ERRORS / len(self.wanted) ** 0.5:
            share = 0.0
        count = max(round(share * len(self.pool)), int(self.unknown.sum()))
        return self.pool.argsort(descending=True, stable=True)[:count]


def doubts(pool: Measured, wanted: Measured, believed: Tensor) -> Doubts:
    """Doubt of every label, by layers of the pool and of the wanted samples, and by neighbours among both.

    Args:
        pool: Measurements of n samples.
        wanted: Measurements of m samples that are sure, by the same model.
        believed: Probability of each label in the pool by the pool's own layer, shape (n,).

    Raises:
        ValueError: For losses without classes, labels that are not known, or wanted samples of one class only or
            of another layer.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> x = torch.randn(90, 4, generator=torch.Generator().manual_seed(0))
        >>> data = [(row, int(row[:3].argmax())) for row in x[:80]] + [(row, 0) for row in x[80:]]
        >>> pruner = InfluencePruner(data, budget=Budget(count=20), progress=False)
        >>> layer = torch.nn.Linear(4, 3)
        >>> measured = pruner.measure(layer).measurements
        >>> found = doubts(measured, measured.subset(torch.arange(40)), own_probability(measured))
        >>> bool(found.pool[80:].mean() > found.pool[:80].mean())
        True
    """
    held, sure = _check(pool, wanted)
    assert held.labels is not None
    assert sure.labels is not None
    classes = held.hessian.size()[0]
    (x, z), labels = _components(held.inputs, sure.inputs), held.labels
    layer, kept_out = _fit(z, sure.labels, classes)
    seen = x[:, :-1], labels, z[:, :-1], sure.labels  # without the bias
    opinions = (
        (_surprise((x @ layer.T).softmax(1), labels), _surprise(kept_out, sure.labels)),
        (_unbelieved(believed), _unbelieved(own_probability(sure))),
        by_pool(*seen),
        by_wanted(*seen),
    )
    found, of_wanted = torch.zeros(len(held)).double(), torch.zeros(len(sure)).double()
    for mine, theirs in opinions:
        mean, deviation = mine.mean(), mine.std().clamp(min=1e-12)
        found += (mine - mean) / deviation
        of_wanted += (theirs - mean) / deviation
    unknown = ~torch.isin(labels, sure.labels)
    found[unknown] = found.max() + 1
    right = float((kept_out.argmax(1) == sure.labels).double().mean())
    return Doubts(found, of_wanted, unknown, right)


def believed(pool: Measurements, influence: Influence) -> Tensor:
    """Probability of each label by the pool's layer, had it not been trained on the sample, shape (n,).

    Where the curvature is not the exact one, as it is in the sample.
    """
    if not is_exact(influence) or pool.labels is None:
        return own_probability(pool)
    return leave_one_out(pool, influence).gather(1, pool.labels[:, None])[:, 0]


def own_probability(measurements: Measurements) -> Tensor:
    """In-sample probability of each sample's label, shape (n,)."""
    hessian, labels = measurements.hessian, measurements.labels
    if labels is None:
        raise ValueError(UNLABELLED)
    if isinstance(hessian, TopHessian):
        own: Tensor = (hessian.probabilities * (hessian.outputs == labels[:, None])).sum(1)
        return own
    assert isinstance(hessian, SoftmaxHessian)
    return hessian.probabilities.gather(1, labels[:, None])[:, 0]


def _check(pool: Measured, wanted: Measured) -> tuple[Measurements, Measurements]:
    """Both as samples with classes.

    Raises:
        ValueError: If they are not, or do not fit together.
    """
    held, sure = check_classes(pool), check_classes(wanted)
    if held.labels is None or sure.labels is None:
        raise ValueError(UNLABELLED)
    check_layers(held, sure)
    present = sure.labels.unique()  # type: ignore[no-untyped-call]
    if len(present) < 2:
        raise ValueError(
            f"all {len(sure)} wanted samples have label {int(present[0])}: a layer that tells classes apart takes "
            "at least two; give wanted samples of more classes"
        )
    return held, sure


def check_layers(measured: Measured, wanted: Measured) -> None:
    """Check that two sets of samples were measured at the same layer.

    Raises:
        ValueError: If it had other inputs or outputs.
    """
    pool, sure = ((m.tokens.inputs.shape[1], m.hessian.size()[0]) for m in (measured, wanted))
    if pool != sure:
        raise ValueError(
            f"the wanted samples were measured at a layer of {sure[0]} inputs and {sure[1]} outputs, the pool at "
            f"one of {pool[0]} and {pool[1]}; measure both with the same model"
        )


def _components(pool: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Leading principal components of the features, of variance one on average, with a bias; float64."""
    some = pool[:: -(-len(pool) // LOOKED_AT)].double()
    mean = some.mean(0)
    values, vectors = torch.linalg.eigh((some - mean).T @ (some - mean) / len(some))
    count = min(COMPONENTS, len(values))
    scale = values[-count:].mean().clamp(min=1e-30).sqrt()

    def of(features: Tensor) -> Tensor:
        seen = (features.double() - mean) @ vectors[:, -count:] / scale
        return torch.cat([seen, torch.ones(len(seen), 1, dtype=torch.float64)], 1)

    return of(pool), of(wanted)


def _fit(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """The layer (C, D) whose penalty has the lowest leave-one-out loss, and those predictions, (m, C)."""
    best = None
    for penalty in PENALTIES:
        layer = _minimum(x, labels, classes, penalty)
        kept_out = _kept_out(x, labels, layer, penalty)
        loss = float(_surprise(kept_out, labels).mean())
        if best is None or loss < best[0]:
            best = loss, layer, kept_out
    assert best is not None
    return best[1], best[2]


def _minimum(x: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """The layer at the minimum of the mean loss and the penalty."""
    layer = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS(
        [layer], max_iter=300, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def loss() -> float:
        with torch.enable_grad():
            value = F.cross_entropy(x @ layer.T, labels) + penalty / 2 * layer.square().sum()
            (layer.grad,) = torch.autograd.grad(value, [layer])
        return float(value.detach())

    search.step(loss)  # type: ignore[no-untyped-call]
    return layer.detach()


def _kept_out(x: Tensor, labels: Tensor, layer: Tensor, penalty: float) -> Tensor:
    """Predictions for each of these samples by a layer fitted to the others."""
    p = (x @ layer.T).softmax(1)
    delta = p.scatter(1, labels[:, None], 0.0)
    delta = delta.scatter(1, labels[:, None], -delta.sum(1, keepdim=True))
    held = Measurements(
        delta, x, SoftmaxHessian(p, torch.ones(len(x)).double()), torch.zeros(len(x)), labels
    )
    exact = held.parameters <= EXACT
    curvature = ExactCurvature(damping=penalty) if exact else BlockCurvature(damping=penalty)
    influence = Influence.build(held.rows(), curvature.factorise(held))
    return leave_one_out(held, influence).double()


def _surprise(probabilities: Tensor, labels: Tensor) -> Tensor:
    return _unbelieved(probabilities.gather(1, labels[:, None])[:, 0])


def _unbelieved(probability: Tensor) -> Tensor:
    return -probability.double().clamp(min=LEAST).log()
