"""Every part of the package against its check-list, and every check-list against wrong parts."""

import itertools
import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pytest
import torch
from conformance import (
    check_curvature,
    check_loss,
    check_objective,
    check_sampler,
    check_solver,
    example_scores,
)
from conftest import ROOT
from torch import nn
from torch.utils.data import RandomSampler, Sampler, TensorDataset

from prunesampler import (
    BinaryCrossEntropy,
    CrossEntropy,
    Curvature,
    ExactCurvature,
    IdentityCurvature,
    InfluencePrunedSampler,
    KeepHead,
    KroneckerCurvature,
    Objective,
    Price,
    SquaredError,
    Target,
    WantedLoss,
    anneal,
    costs,
    loss_distance,
    parameter_distance,
)
from prunesampler.influence.factorised import ExactFactorised, IdentityFactorised
from prunesampler.measure.losses import Derivatives
from prunesampler.solve.problem import Solution

quick = partial(anneal, moves=20_000)


def broken(promise):
    """The checker must refuse, and name the promise."""
    return pytest.raises(AssertionError, match=re.escape(promise))


# Samplers


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_the_sampler_keeps_its_promises(shuffle, uneven):
    check_sampler(partial(InfluencePrunedSampler, uneven=uneven, shuffle=shuffle))


class Draws(InfluencePrunedSampler):
    """Another order with every pass."""

    def indices(self, epoch):
        order = super().indices(epoch)
        return [order[i] for i in torch.randperm(len(order)).tolist()]


class Live(InfluencePrunedSampler):
    """Reads the kept set while it yields."""

    def __iter__(self):
        yielded = 0
        order = self.indices(self.clock.begin())
        while yielded < len(order):
            yield self.indices(self.epoch)[yielded]
            yielded += 1
        self.clock.end(self.epoch)


class Counts(InfluencePrunedSampler):
    """One index too few."""

    def __len__(self):
        return super().__len__() - 1


class AllRanks(InfluencePrunedSampler):
    """Every rank yields the first indices of the pass."""

    def indices(self, epoch):
        rank, self.rank = self.rank, 0
        order = super().indices(epoch)
        self.rank = rank
        return order


class Forgets(InfluencePrunedSampler):
    """A state without the kept set."""

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.reset()


class Holds(InfluencePrunedSampler):
    """Has an attribute that frameworks write to."""

    generator = None


@pytest.mark.parametrize(
    ("make", "promise"),
    [
        (Draws, "a pass changes nothing: the same epoch, the same order"),
        (Live, "a pass is a snapshot that restrict does not reach"),
        (Counts, "a pass is every kept index once"),
        (AllRanks, "no index is on two ranks but to pad"),
        (Forgets, "a state restores seed, epoch and kept set"),
        (Holds, "frameworks write to an attribute called generator"),
        (lambda data, **_: list(data), "a sampler inherits from torch.utils.data.Sampler"),
        (lambda data, **_: RandomSampler(data), "frameworks replace RandomSamplers"),
    ],
)
def test_a_wrong_sampler_is_refused(make, promise):
    with broken(promise):
        check_sampler(make)
    assert issubclass(InfluencePrunedSampler, Sampler)


# Curvatures

CURVATURES = {
    "exact": ExactCurvature(),
    "exact, damping 1": ExactCurvature(damping=1.0),
    "exact, damping 1e-8": ExactCurvature(damping=1e-8),
    "exact, damping 0": ExactCurvature(damping=0.0),
    "Kronecker": KroneckerCurvature(),
    "Kronecker, damping 1": KroneckerCurvature(damping=1.0),
    "Kronecker, damping 1e-8": KroneckerCurvature(damping=1e-8),
    "identity": IdentityCurvature(),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_a_curvature_keeps_its_promises(name):
    check_curvature(CURVATURES[name])


class Deaf(ExactCurvature):
    """Does not hear the damping that it is given."""

    def factorise(self, measurements, damping=None):
        return super().factorise(measurements, self.damping)


@dataclass(frozen=True)
class Wrapped(Curvature):
    """The exact curvature with one thing done otherwise."""

    kind: type

    def factorise(self, measurements, damping=None):
        found = ExactCurvature(damping=0.1).factorise(measurements, damping)
        return self.kind(found.cholesky, found.light, found.damping)


class Skewed(ExactFactorised):
    def multiply(self, matrix):
        turned = super().multiply(matrix)
        return turned + 0.01 * torch.roll(matrix.double(), 1, -1)


class TwiceInverse(ExactFactorised):
    def apply_inverse(self, matrix):
        return 2 * super().apply_inverse(matrix)


class Negative(ExactFactorised):
    def multiply(self, matrix):
        return -super().multiply(matrix)

    def apply_inverse(self, matrix):
        return -super().apply_inverse(matrix)


class Single(ExactFactorised):
    def apply_inverse(self, matrix):
        return super().apply_inverse(matrix).float()


class OwnMean(ExactFactorised):
    """Whitens each row to the same length."""

    def whiten(self, rows):
        white = super().whiten(rows)
        return replace(white, right=nn.functional.normalize(white.right))


class OneRow(ExactFactorised):
    """Sees the first direction only."""

    def whiten(self, rows):
        white = super().whiten(rows)
        return replace(white, right=white.right[:, :1])


class Squares(ExactFactorised):
    """Ignores the power."""

    def squares(self, rows, mean, power):
        rows = replace(rows, left=rows.left.double())
        centred = torch.cat(list(rows.dense_chunks())) - mean
        return (centred * self.apply_inverse(centred)).sum((1, 2))


class Flat(ExactFactorised):
    def multiply(self, matrix):
        return super().multiply(matrix).flatten(1)


class Cheap(ExactCurvature):
    def refactorise(self, measurements, near):
        return IdentityFactorised(near.damping)


@pytest.mark.parametrize(
    ("curvature", "promise"),
    [
        (Deaf(damping=0.1), "a damping that is given to factorise replaces"),
        (Wrapped(Skewed), "the curvature is symmetric"),
        (Wrapped(TwiceInverse), "apply_inverse undoes multiply"),
        (Wrapped(Negative), "the curvature is positive definite"),
        (Wrapped(Single), "apply_inverse gives float64"),
        (Wrapped(OwnMean), "whitening is linear"),
        (Wrapped(OneRow), "whitening loses nothing"),
        (Wrapped(Squares), "squares with power 2 equal explicit ones"),
        (Wrapped(Flat), "multiply keeps the shape of a stack"),
        (Cheap(), "refactorise means the same"),
    ],
)
def test_a_wrong_curvature_is_refused(curvature, promise):
    with broken(promise):
        check_curvature(curvature)


# Solvers


def test_annealing_keeps_its_promises():
    check_solver(quick)


def altered(change):
    """Annealing whose solution is changed before it is returned."""

    def solver(influence, budget, **options):
        return change(quick(influence, budget, **options), influence)

    return solver


def one_less(found, influence):
    return Solution(found.pruned[1:], influence.shift_norm(found.pruned[1:]))


def other_samples(found, influence):
    if len(found.pruned) != 96:
        return found
    pruned = torch.from_numpy(np.random.default_rng(0).permutation(240)[:96]).sort().values
    return Solution(pruned, influence.shift_norm(pruned))


def drawn(found, influence):
    torch.rand(1)
    return found


def without(*names):
    """Annealing that does not look at some of its arguments."""

    def solver(influence, budget, **options):
        for name in names:
            options.pop(name, None)
        return quick(influence, budget, **options)

    return solver


def over(influence, budget, *, progress=None, **options):
    if progress:
        progress(3, 2)
    return quick(influence, budget, **options)


def loose(influence, budget, **options):
    """Allows a tenth more than epsilon."""
    if budget.epsilon is not None:
        budget = replace(budget, epsilon=1.1 * budget.epsilon)
    return quick(influence, budget, **options)


def no_floors(influence, budget, *, labels=None, **options):
    return quick(influence, replace(budget, min_per_class=0, proportional=False), **options)


CALLS = itertools.count()


def restless(influence, budget, *, seed=0, **options):
    """Another seed with every call."""
    del seed
    return quick(influence, budget, seed=next(CALLS), **options)


@pytest.mark.parametrize(
    ("solver", "promise"),
    [
        (altered(one_less), "of 240 samples prunes 96, exactly"),
        (altered(other_samples), "less than half a random set's"),
        (altered(drawn), "global random numbers are left alone"),
        (altered(lambda s, _: Solution(s.pruned.flip(0), s.norm)), "ascending and distinct"),
        (altered(lambda s, _: Solution(s.pruned.int(), s.norm)), "indices are int64"),
        (altered(lambda s, _: Solution(s.pruned, s.norm / 2)), "the norm is the set's"),
        (without("constraints"), "keep= is kept"),
        (without("progress"), "progress is called"),
        (without("cost"), "a cost that outweighs the shift decides"),
        (no_floors, "min_per_class= is kept"),
        (over, "progress never passes its end"),
        (loose, "epsilon= is kept to, in float64"),
        (restless, "the same arguments give the same set"),
    ],
)
def test_a_wrong_solver_is_refused(solver, promise):
    with broken(promise):
        check_solver(solver)


# Losses


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 3, 1, 0])


def layer(outputs=4):
    torch.manual_seed(0)
    return nn.Linear(5, outputs)


WEIGHT = torch.tensor([1.0, 0.5, 3.0, 0.1])
CLASSES = {
    "plain": CrossEntropy(),
    "weights": CrossEntropy(weight=WEIGHT),
    "smoothing": CrossEntropy(label_smoothing=0.3),
    "weights and smoothing": CrossEntropy(weight=WEIGHT, label_smoothing=0.1),
}


@pytest.mark.parametrize("name", CLASSES)
def test_cross_entropy_keeps_its_promises(name, batch):
    x, y = batch
    one_hot = nn.functional.one_hot(y, 4).float()
    for targets in (y, one_hot, (one_hot + 1) / 8 + one_hot * 0.375):
        check_loss(
            CLASSES[name],
            layer(),
            (x, targets / targets.sum(1, keepdim=True) if targets.dim() == 2 else targets),
        )


def test_cross_entropy_on_mappings_keeps_its_promises(batch):
    def run(model, batch):
        return model(batch["x"]), batch["labels"]

    check_loss(CrossEntropy(run=run), layer(), {"x": batch[0], "labels": batch[1]})


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("outputs", [1, 4])
def test_binary_cross_entropy_keeps_its_promises(weight, outputs, batch):
    losses = BinaryCrossEntropy(pos_weight=None if weight is None else weight[:outputs])
    answers = torch.arange(6 * outputs).view(6, outputs) % 3
    for targets in (answers % 2, answers / 2):
        check_loss(losses, layer(outputs), (batch[0], targets))
    if outputs == 1:
        check_loss(losses, layer(1), (batch[0], answers.flatten() % 2))


@pytest.mark.parametrize("outputs", [1, 3])
def test_squared_error_keeps_its_promises(outputs, batch):
    targets = torch.linspace(-2, 3, 6 * outputs).view(6, outputs)
    check_loss(SquaredError(), layer(outputs), (batch[0], targets))


def test_a_loss_without_closed_forms_keeps_its_promises(batch):
    check_loss(
        lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), layer(), batch
    )


class Steep(SquaredError):
    def derivatives(self, outputs, targets):
        values, delta, hessian = super().derivatives(outputs, targets)
        return Derivatives(values, 2 * delta, hessian)


class Curved(CrossEntropy):
    """Of the right curvature for one weight only."""

    def derivatives(self, outputs, targets):
        values, delta, hessian = super().derivatives(outputs, targets)
        return Derivatives(values, delta, replace(hessian, mass=torch.ones_like(hessian.mass)))


class Bounded(CrossEntropy):
    @property
    def lipschitz(self):
        return 0.1


class WeightedMean(CrossEntropy):
    """Divides by the weights of the batch, as torch's own mean does."""

    def values(self, outputs, targets):
        values = super().values(outputs, targets)
        return values / self.weight.to(outputs)[targets].mean()


@pytest.mark.parametrize(
    ("losses", "promise"),
    [
        (lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), "one loss per sample"),
        (
            lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none").detach(),
            "losses can be differentiated",
        ),
        (
            lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none").sort().values,
            "the losses follow their samples",
        ),
        (WeightedMean(weight=WEIGHT), "a loss is of its own sample"),
        (Curved(weight=WEIGHT), "the Hessian is the second derivative"),
        (Bounded(), "lipschitz bounds the gradient"),
    ],
)
def test_a_wrong_loss_is_refused(losses, promise, batch):
    with broken(promise):
        check_loss(losses, layer(), batch)


def test_a_loss_with_a_wrong_gradient_is_refused(batch):
    with broken("delta is the gradient by the outputs"):
        check_loss(Steep(), layer(1), (batch[0], batch[1].float()))


# Objectives

GOOD = TensorDataset(torch.zeros(20, 5), torch.arange(20) % 4)
PRICES = torch.arange(200.0)
OBJECTIVES = {
    "nothing changed": Objective(),
    "head": KeepHead(),
    "head, the paper's metric": KeepHead(metric=parameter_distance),
    "head, loss": KeepHead(metric=loss_distance),
    "target": Target(GOOD),
    "target beside the shift": Target(GOOD, shift=True),
    "wanted loss": WantedLoss(GOOD),
    "wanted loss, weight": WantedLoss(GOOD, weight=0.25),
    "wanted loss alone": WantedLoss(GOOD, shift=False),
    "price": Price(PRICES),
    "price, a list": Price([1.0] * 200),
    "price, nothing": Price(PRICES, weight=0.0),
    "price alone": Price(-1e300 * PRICES.double(), shift=False),
    "EL2N": Price(costs.el2n, weight=0.5),
    "EL2N alone": Price(costs.el2n, shift=False),
    "GraNd": Price(costs.grand),
    "self-influence": Price(costs.self_influence),
    "influence": Price(costs.influence_norm),
}


@pytest.mark.filterwarnings("ignore:Target judges labels by features")  # of random numbers
@pytest.mark.parametrize("name", OBJECTIVES)
def test_an_objective_keeps_its_promises(name):
    check_objective(OBJECTIVES[name])


def objective(**changes):
    """An objective with attributes and methods of its own."""
    return type("Mine", (Objective,), changes)()


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        (KeepHead, "an objective inherits from"),
        (objective(cost=lambda self, scores: PRICES), "a cost is float64"),
        (objective(cost=lambda self, scores: PRICES.double()[:9]), "one cost per sample"),
        (objective(cost=lambda self, scores: PRICES.double().log()), "a cost is finite"),
        (
            objective(cost=lambda self, scores: PRICES.double().requires_grad_()),
            "a cost has no gradient",
        ),
        (
            objective(cost=lambda self, scores: torch.rand(200).double()),
            "global random numbers are left alone",
        ),
        (
            objective(cost=lambda self, scores: scores.measurements.losses.mul_(2).double()),
            "the scores are left as they are",
        ),
        (
            objective(cost=lambda self, scores: PRICES.double() + next(CALLS)),
            "the same scores give the same cost",
        ),
        (objective(shift=False), "where the shift does not count there is a cost"),
        (objective(shift=1), "shift is True or False"),
        (objective(metric=staticmethod(lambda f, x: x.cumsum(-1))), "the metric is symmetric"),
        (objective(metric=staticmethod(lambda f, x: -x)), "the metric is positive"),
        (objective(metric=3), "metric is a function"),
    ],
)
def test_a_wrong_objective_is_refused(wrong, promise):
    with broken(promise):
        check_objective(wrong)


def test_the_checklists_can_be_given_scores_of_ones_own():
    check_objective(Price(PRICES[:50]), example_scores(50))


# CONTRIBUTING.md


def blocks():
    """The Python of CONTRIBUTING.md, by the heading above it."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    parts = re.split(r"^#+ ", text, flags=re.M)
    found = {p.splitlines()[0]: re.findall(r"```python\n(.*?)```", p, re.S) for p in parts if p}
    return {heading: "\n".join(codes) for heading, codes in found.items() if codes}


@pytest.mark.parametrize("kind", ["curvature", "solver", "objective", "loss"])
def test_the_code_of_contributing_runs(kind):
    (code,) = [code for heading, code in blocks().items() if kind in heading]
    assert f"check_{kind}(" in code
    torch.manual_seed(0)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {"__name__": "example"})


def test_contributing_shows_nothing_that_is_not_run():
    assert len(blocks()) == 4
