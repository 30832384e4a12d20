"""Check-lists: what each kind of part promises, as functions that fail where a promise is broken.

A part of your own, a curvature, a solver, an objective, a loss or a sampler, is tested by naming it::

    check_curvature(MyCurvature())
    check_solver(my_solver)

The functions need torch, NumPy and prunesampler only, no test runner: copy this file to where your
part lives. A broken promise is an AssertionError whose message says what was promised.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import RandomSampler, Sampler

from prunesampler import (
    Budget,
    Constraints,
    CrossEntropy,
    Curvature,
    ExactCurvature,
    Influence,
    Objective,
    SquaredError,
)
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.rows import RankOne
from prunesampler.measure.losses import ClosedFormLoss
from prunesampler.select.scores import Scores

SAMPLES = 1100
"""More than the package handles at a time, so that what is done chunk by chunk is done twice."""


def example_measurements(kind: str = "classes", samples: int = SAMPLES) -> Measurements:
    """Measurements of a layer of 5 inputs, float32: of 4 ``"classes"``, or of 3 ``"numbers"``."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.cat([torch.randn(samples, 5, generator=generator), torch.ones(samples, 1)], 1)
    outputs = torch.randn(samples, 4 if kind == "classes" else 3, generator=generator)
    if kind == "classes":
        labels = torch.arange(samples) % 4
        return Measurements(*_measured(CrossEntropy(), outputs, labels, inputs), labels)
    targets = torch.randn(samples, 3, generator=generator)
    return Measurements(*_measured(SquaredError(), outputs, targets, inputs))


def _measured(
    losses: ClosedFormLoss, outputs: Tensor, targets: Tensor, inputs: Tensor
) -> tuple[Any, ...]:
    """What `Measurements` holds, in its order."""
    values, delta, hessian = losses.derivatives(outputs, targets)
    return delta, inputs, hessian, values


def example_scores(samples: int = 200) -> Scores:
    """Scores of the same layer, with wanted samples."""
    measured = example_measurements(samples=samples)
    curvature = ExactCurvature(damping=0.01)
    influence = Influence.build(measured.rows(), curvature.factorise(measured))
    return Scores(
        measured, influence, measured.labels, measured[:20], curvature, True, None, {}, "head"
    )


def check_sampler(make: Callable[..., Any]) -> None:
    """Check a sampler over a changing subset of a dataset's indices.

    Promised: it is a `torch.utils.data.Sampler` that frameworks do not take for their own; iterating
    changes nothing but the epoch; the order depends on (seed, epoch, kept) alone; the length is what
    is yielded; ranks share the indices evenly; a state restores the order, also in the middle of a
    pass; a pass is a snapshot that `restrict` does not reach.

    Args:
        make: ``make(dataset, seed=, num_replicas=, rank=)`` returns a sampler; the three may be left out.
    """
    sampler = make(range(30), seed=3)
    assert isinstance(sampler, Sampler), "a sampler inherits from torch.utils.data.Sampler"
    assert not isinstance(sampler, RandomSampler), "frameworks replace RandomSamplers by their own"
    assert not hasattr(sampler, "generator"), "frameworks write to an attribute called generator"
    _check_order(make)
    _check_ranks(make)
    _check_changes(make)
    _check_states(make)


def _pass_of(sampler: Any, epoch: int) -> list[int]:
    sampler.set_epoch(epoch)
    return list(sampler)


def _check_order(make: Callable[..., Any]) -> None:
    sampler, twin = make(range(30), seed=3), make(range(30), seed=3)
    before = _global_random()
    first, second = _pass_of(sampler, 0), _pass_of(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(30)), "a pass is every kept index once"
    assert all(type(index) is int for index in first), "indices are Python ints"
    assert len(sampler) == len(first), "the length is the number of indices in a pass"
    assert _pass_of(sampler, 0) == first, "a pass changes nothing: the same epoch, the same order"
    next(iter(sampler))  # a pass that is left
    assert _pass_of(sampler, 0) == first, "a pass that was left changes nothing"
    assert _pass_of(twin, 1) == second, "the order depends on seed, epoch and kept set alone"
    assert _pass_of(twin, 0) == first, "the order depends on seed, epoch and kept set alone"
    assert _same_random(before, _global_random()), "global random numbers are left alone"
    one, other = iter(sampler), iter(sampler)
    assert [i for pair in zip(one, other, strict=True) for i in pair][::2] == first, (
        "two passes at a time do not disturb each other"
    )
    plain = make(range(30), seed=3)
    assert [list(plain), list(plain)] == [first, second], "a pass that ended moves the epoch on"


def _check_ranks(make: Callable[..., Any]) -> None:
    alone = make(range(30), seed=3)
    ranks = [make(range(30), seed=3, num_replicas=2, rank=rank) for rank in range(2)]
    for kept in (range(30), range(10, 20), range(9)):
        for sampler in (alone, *ranks):
            sampler.restrict(list(kept))
        passes = [_pass_of(sampler, 4) for sampler in ranks]
        whole, rest = divmod(len(kept), 2)
        assert [len(ours) for ours in passes] == [len(sampler) for sampler in ranks], "length"
        assert len(passes[0]) == len(passes[1]), (
            "all ranks yield equally many, or they wait for ever"
        )
        assert len(passes[0]) in (whole, whole + rest), "ranks share the kept set evenly"
        drawn = [index for ours in passes for index in ours]
        assert len(set(drawn)) >= min(len(drawn), len(kept)), "no index is on two ranks but to pad"
        assert set(drawn) <= set(kept), "only kept indices are yielded"
        if not rest:
            woven = [index for pair in zip(*passes, strict=True) for index in pair]
            assert woven == _pass_of(alone, 4), "ranks take turns in the order of a single process"


def _check_changes(make: Callable[..., Any]) -> None:
    sampler, twin = make(range(30), seed=3), make(range(30), seed=3)
    whole = _pass_of(sampler, 2)
    sampler.set_epoch(2)
    begun = iter(sampler)
    sampler.restrict(torch.tensor([7, 3, 20]))
    assert _take(begun, 30) == whole, "a pass is a snapshot that restrict does not reach"
    assert sampler.kept.tolist() == [3, 7, 20], "kept is ascending"
    assert sampler.kept.dtype == torch.int64, "kept is int64"
    twin.restrict([20, 7, 3])
    assert _pass_of(sampler, 2) == _pass_of(twin, 2), "the order does not depend on what was before"
    assert sorted(_pass_of(sampler, 2)) == [3, 7, 20], "the next pass is over the new set"
    sampler.reset()
    assert _pass_of(sampler, 2) == whole, "reset keeps all samples again"
    for wrong in ([], [30], [-1], [1, 1]):
        assert _refuses(lambda wrong=wrong: sampler.restrict(wrong)), f"restrict refuses {wrong}"
    assert len(sampler) == 30, "a refusal changes nothing"


def _take(iterator: Any, count: int) -> list[int]:
    """Some indices of a pass; its end is not asked for."""
    return list(itertools.islice(iterator, count))


def _check_states(make: Callable[..., Any]) -> None:
    sampler = make(range(30), seed=3)
    sampler.restrict([*range(0, 30, 2)])
    sampler.set_epoch(5)
    state = json.loads(json.dumps(sampler.state_dict()))
    whole = list(sampler)
    twin = make(range(30), seed=8)
    twin.load_state_dict(state)
    assert list(twin) == whole, "a state restores seed, epoch and kept set, also through JSON"
    sampler.set_epoch(5)
    half = iter(sampler)
    place = _take(half, 4)
    state, position = copy.deepcopy((sampler.state_dict(), half.state_dict()))
    twin = make(range(30), seed=8)
    twin.load_state_dict(state)
    rest = iter(twin)
    rest.load_state_dict(position)
    assert [*place, *rest] == whole, "a pass goes on where it was saved"
    larger = make(range(31))
    assert _refuses(lambda: larger.load_state_dict(state)), "a state of another dataset is refused"
    assert _refuses(lambda: larger.load_state_dict({})), "what is no state is refused"
    assert len(larger) == 31, "a refusal changes nothing"


def check_curvature(curvature: Curvature) -> None:
    """Check a curvature on measurements of a softmax and of a squared error.

    Promised: the factorised curvature is a symmetric positive definite matrix, damping included, the
    same for one matrix as for a stack of them, in float64; a given damping replaces its own; whitened
    rows are a linear, invertible image of the gradients, so that a sum that is zero stays zero;
    `squares` is exact or None; `refactorise` means the same as `factorise`.

    Args:
        curvature: the object, as it is given to the pruner.
    """
    for kind in ("classes", "numbers"):
        measured = example_measurements(kind)
        curvature.check(measured[:16], len(measured))
        factorised = curvature.factorise(measured)
        dense = _check_factorised(factorised, measured)
        other = curvature.factorise(measured, 0.7)
        change = _check_factorised(other, measured) - dense
        expected = (other.damping - factorised.damping) * torch.eye(len(dense), dtype=torch.float64)
        # The curvature itself may be added up in float32 for one damping and in float64 for another.
        _close(change, expected, "damping is a multiple of the identity that is added", 1e3)
        assert other.damping == 0.7 or factorised.damping == other.damping == 0, (
            "a damping that is given to factorise replaces the curvature's own"
        )
        matrix = measured.rows().sum() / len(measured)
        again = curvature.refactorise(measured, factorised).apply_inverse(matrix)
        exact = factorised.apply_inverse(matrix)
        assert float((again - exact).norm()) <= 1e-2 * float(exact.norm()), (
            "refactorise means the same as factorise"
        )


def _check_factorised(factorised: Any, measured: Measurements) -> Tensor:
    """Check all but the damping; return the matrix, shape (R, R)."""
    shape = measured.shape
    size = shape[0] * shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    dense = factorised.multiply(basis)
    inverse = factorised.apply_inverse(basis)
    for name, found in (("multiply", dense), ("apply_inverse", inverse)):
        assert found.dtype == torch.float64, f"{name} gives float64"
        assert found.shape == basis.shape, f"{name} keeps the shape of a stack of matrices"
        single = getattr(factorised, name)(basis[1].float())
        assert single.dtype == torch.float64, f"{name} gives float64 for float32 too"
        assert single.shape == shape, f"{name} keeps the shape of one matrix"
        _close(single, found[1], f"{name} treats a matrix of a stack as it treats one alone")
    dense, inverse = dense.view(size, size), inverse.view(size, size)
    _close(dense, dense.T, "the curvature is symmetric")
    values = torch.linalg.eigvalsh((dense + dense.T) / 2)
    assert float(values[0]) > 0, "the curvature is positive definite"
    eye = torch.eye(size, dtype=torch.float64)
    _close(
        dense @ inverse, eye, "apply_inverse undoes multiply", float(values[-1] / values[0]) / 1e3
    )
    _check_whitening(factorised, measured.rows())
    _check_squares(factorised, measured.rows(), inverse)
    return dense


def _check_whitening(factorised: Any, rows: RankOne) -> None:
    size = rows.shape[0] * rows.shape[1]
    whitened = factorised.whiten(rows)
    flat = whitened.flat()
    assert len(whitened) == len(rows), "whiten gives a row for every sample"
    assert whitened.left.dtype == whitened.right.dtype == torch.float32, "whitened rows are float32"
    assert bool(torch.isfinite(flat).all()), "whitened rows are finite"
    unit = RankOne(
        torch.eye(rows.shape[0]).repeat_interleave(rows.shape[1], 0),
        torch.eye(rows.shape[1]).repeat(rows.shape[0], 1),
    )
    image = factorised.whiten(unit).flat().double()
    expected = rows.flat().double() @ image
    error = float((flat - expected).norm() / expected.norm())
    assert error < 1e-4, "whitening is linear: a sum that is zero stays zero"
    assert int(torch.linalg.matrix_rank(image)) == size, "whitening loses nothing: it is invertible"


def _check_squares(factorised: Any, rows: RankOne, inverse: Tensor) -> None:
    mean = rows.sum() / len(rows)
    centred = RankOne(rows.left.double(), rows.right.double()).flat() - mean.flatten()
    for power in (1, 2):
        found = factorised.squares(rows, mean, power)
        if found is None:
            continue
        assert found.dtype == torch.float64, "squares are float64"
        expected = ((centred @ torch.linalg.matrix_power(inverse, power)) * centred).sum(1)
        _close(found, expected, f"squares with power {power} equal explicit ones, or are None")


def check_solver(solver: Callable[..., Any]) -> None:
    """Check a solver on 240 samples of four classes and a layer of 18 parameters.

    Promised: sets of the exact size, ascending, distinct, int64; constraints, floors and epsilon are
    kept to; the norm is that of the set, in float64; a cost that outweighs the shift decides; the
    same arguments give the same set; global random numbers are left alone; progress never passes its
    end; impossible budgets are refused; and the shift is less than half a random set's.

    Args:
        solver: the function; set its options with ``functools.partial``.
    """
    scores = example_scores(240)
    influence, labels = scores.influence, scores.labels
    assert labels is not None
    before = _global_random()
    for budget, count in (
        (Budget(fraction=0.4), 96),
        (Budget(count=17), 17),
        (Budget(count=1), 1),
        (Budget(count=239, min_per_class=0), 239),
    ):
        found = _solved(solver, influence, budget, labels)
        assert len(found.pruned) == count, f"{budget} of 240 samples prunes {count}, exactly"
    assert _same_random(before, _global_random()), "global random numbers are left alone"
    _check_same_set(solver, influence)
    _check_limits(solver, influence, labels)
    _check_epsilon(solver, influence, labels)
    _check_cost(solver, influence)


def _solved(
    solver: Callable[..., Any],
    influence: Influence,
    budget: Budget,
    labels: Tensor | None,
    **rest: Any,
) -> Any:
    """A solution whose form and norm were checked."""
    found = solver(influence, budget, labels=labels, **{"seed": 1, **rest})
    pruned = found.pruned
    assert pruned.dtype == torch.int64, "pruned indices are int64"
    assert pruned.dim() == 1, "pruned indices have shape (m,)"
    assert bool((pruned[1:] > pruned[:-1]).all()), "pruned indices are ascending and distinct"
    assert not len(pruned) or 0 <= int(pruned[0]) <= int(pruned[-1]) < len(influence), "in range"
    norm = influence.shift_norm(pruned) if len(pruned) else 0.0
    assert isinstance(found.norm, float), "the norm is a Python float"
    assert math.isclose(found.norm, norm, rel_tol=1e-9, abs_tol=1e-12), "the norm is the set's"
    return found


def _check_same_set(solver: Callable[..., Any], influence: Influence) -> None:
    budget, steps = Budget(fraction=0.4), []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    found = _solved(solver, influence, budget, None, progress=note)
    again = _solved(solver, influence, budget, None)
    assert torch.equal(found.pruned, again.pruned), "the same arguments give the same set"
    assert steps, "progress is called"
    assert all(0 <= done <= total for done, total in steps), "progress never passes its end"
    m, n = len(found.pruned), len(influence)
    spread = float(influence.sample_squares().sum())
    at_random = math.sqrt(m * (n - m) / (n * (n - 1)) * spread) / (n - m)
    assert found.norm < at_random / 2, "the shift is less than half a random set's"


def _check_limits(solver: Callable[..., Any], influence: Influence, labels: Tensor) -> None:
    keep, prune = torch.arange(0, 60), torch.arange(100, 130)
    limits = Constraints(keep=keep, prune=prune)
    for budget in (Budget(count=100), Budget(count=30), Budget(count=180, min_per_class=0)):
        pruned = _solved(solver, influence, budget, labels, constraints=limits).pruned
        assert len(pruned) == budget.count, "the size is exact with constraints too"
        assert not torch.isin(keep, pruned).any(), "keep= is kept"
        assert torch.isin(prune, pruned).all(), "prune= is pruned"
    budget = Budget(count=200, min_per_class=9)
    classes = (torch.arange(240) >= 12).long() + (torch.arange(240) >= 60).long()
    pruned = _solved(solver, influence, budget, classes).pruned
    kept = torch.bincount(classes, minlength=3) - torch.bincount(classes[pruned], minlength=3)
    assert bool((kept >= 9).all()), "min_per_class= is kept of every class"
    pruned = _solved(solver, influence, Budget(fraction=0.5, proportional=True), classes).pruned
    kept = torch.bincount(classes, minlength=3) - torch.bincount(classes[pruned], minlength=3)
    assert kept.tolist() == [6, 24, 90], "proportional=True keeps every class's share"
    few = Constraints(keep=torch.arange(200))
    for wrong in ({"constraints": few}, {"constraints": Constraints(keep=[3], prune=[3])}):
        refused = _refuses(lambda wrong=wrong: solver(influence, Budget(count=100), **wrong))
        assert refused, "what cannot be met is refused with a ValueError"


def _check_epsilon(solver: Callable[..., Any], influence: Influence, labels: Tensor) -> None:
    base = influence.shift_norm(torch.arange(30))
    steps = []

    def note(done: int, total: int) -> None:
        steps.append((done, total))

    for epsilon in (base, base / 10):
        budget = Budget(epsilon=epsilon, max_fraction=0.5, min_per_class=5)
        found = _solved(solver, influence, budget, labels, progress=note)
        assert influence.shift_norm(found.pruned) <= epsilon, "epsilon= is kept to, in float64"
        assert len(found.pruned) <= 120, "max_fraction= is kept to"
        kept = torch.bincount(labels) - torch.bincount(labels[found.pruned], minlength=4)
        assert bool((kept >= 5).all()), "floors are kept to with epsilon too"
    assert all(0 <= done <= total for done, total in steps), "progress never passes its end"


def _check_cost(solver: Callable[..., Any], influence: Influence) -> None:
    cost = torch.zeros(240, dtype=torch.float64)
    cost[torch.arange(0, 240, 4)] = 1e4
    pruned = _solved(solver, influence, Budget(count=60), None, cost=cost).pruned
    assert not bool((cost[pruned] > 0).any()), "a cost that outweighs the shift decides"
    refused = _refuses(lambda: solver(influence, Budget(count=60), cost=cost / 0))
    assert refused, "a cost that is not finite is refused with a ValueError"


def check_loss(losses: Callable[..., Tensor], model: nn.Module, batch: Any) -> None:
    """Check a per-sample loss, and its closed forms where it has them, against automatic ones.

    Promised: one unreduced loss per sample, of that sample alone; gradient and Hessian by the outputs
    are those of automatic differentiation; the Hessian's basis spans all that the loss can see; the
    losses follow their samples when a batch is put in another order.

    Args:
        losses: ``losses(model, batch)``, shape (b,); with the closed forms of
            `prunesampler.measure.losses.ClosedFormLoss` these are checked too.
        model: runs on the batch; it is checked in float64, as it evaluates.
        batch: at least four samples: tensors, or a tuple, list or mapping of them, first dimension b.
    """
    model = copy.deepcopy(model).double().eval()
    batch = _each(batch, lambda t: t.double() if t.is_floating_point() else t)
    values = losses(model, batch)
    assert values.dim() == 1, "one loss per sample, shape (b,)"
    size = len(values)
    assert size >= 4, "the batch of this check holds at least four samples"
    order = torch.arange(size).flip(0).roll(1)
    moved = losses(model, _each(batch, lambda t: t[order]))
    assert len(moved) == size, "one loss per sample: its number follows the batch's"
    _close(moved, values[order], "the losses follow their samples into another order")
    part = losses(model, _each(batch, lambda t: t[: size // 2]))
    _close(part, values[: size // 2], "a loss is of its own sample, whatever else is in the batch")
    assert values.requires_grad, "losses can be differentiated by the model's parameters"
    if isinstance(losses, ClosedFormLoss):
        outputs, targets = losses.outputs_and_targets(model, batch)
        _close(losses.values(outputs, targets), values, "values are what the call returns")
        _check_derivatives(losses, outputs.detach(), targets)
        _check_derivatives(losses, 20 * outputs.detach(), targets)


def _check_derivatives(losses: Any, outputs: Tensor, targets: Tensor) -> None:
    found = losses.derivatives(outputs, targets)
    leaf = outputs.clone().requires_grad_()
    values = losses.values(leaf, targets)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    _close(found.losses, values.detach(), "derivatives give the same losses")
    _close(found.delta, gradient, "delta is the gradient by the outputs")
    basis = found.hessian.basis()
    dense = torch.stack([_hessian(losses, outputs, targets, i) for i in range(len(outputs))])
    seen = basis.T @ dense @ basis
    _close(found.hessian.dense(basis), seen, "the Hessian is the second derivative by the outputs")
    eye = torch.eye(basis.shape[1], dtype=torch.float64)
    _close(basis.T @ basis, eye, "the Hessian's basis is orthonormal")
    _close(gradient @ basis @ basis.T, gradient, "the basis spans every gradient")
    _close(basis @ seen @ basis.T, dense, "the basis spans every direction of curvature")
    vectors = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1)).double()
    expected = torch.einsum("ncd,nd->nc", dense, vectors)
    _close(found.hessian.apply(vectors), expected, "apply is a product with the Hessian")
    _close(found.hessian.total(), dense.sum(0), "total is the sum of the Hessians")
    classes, bound = losses.classes(targets), losses.lipschitz
    if classes is not None:
        assert classes.dtype == torch.int64, "classes are int64"
        assert classes.shape == (len(outputs),), "one class per sample"
    if bound is not None:
        longest = float(gradient.norm(dim=1).max())
        assert longest <= bound * (1 + 1e-9), "lipschitz bounds the gradient by the outputs"


def _hessian(losses: Any, outputs: Tensor, targets: Tensor, i: int) -> Tensor:
    """Second derivative of sample i's loss; the whole batch runs, as some losses refuse one sample."""

    def value(row: Tensor) -> Tensor:
        changed = torch.cat([outputs[:i], row[None], outputs[i + 1 :]])
        loss: Tensor = losses.values(changed, targets)[i]
        return loss

    found = torch.autograd.functional.hessian(value, outputs[i])
    assert isinstance(found, Tensor)
    return found


def check_objective(objective: Objective, scores: Scores | None = None) -> None:
    """Check an objective.

    Promised: the cost is None, or one finite number per sample, a function of the scores that changes
    nothing and draws nothing; where the shift does not count there is a cost; the metric is a
    symmetric, positive matrix that treats a stack of shifts as it treats one.

    Args:
        objective: the object, as it is given to the pruner.
        scores: scores of n samples; default: of 200, from `example_scores`.
    """
    scores = example_scores() if scores is None else scores
    n, shape = len(scores.measurements), scores.measurements.shape
    assert isinstance(objective, Objective), "an objective inherits from prunesampler.Objective"
    assert isinstance(objective.shift, bool), "shift is True or False"
    assert isinstance(objective.settings(), list), "settings is a list"
    objective.check(n)
    if objective.wanted is not None:
        assert len(objective.wanted) > 0, "wanted is a map-style dataset"
    random_before, seen = _global_random(), _content(scores)
    cost, again = objective.cost(scores), objective.cost(scores)
    assert _same_random(random_before, _global_random()), "global random numbers are left alone"
    assert _same(seen, _content(scores)), "the scores are left as they are"
    assert cost is not None or objective.shift, "where the shift does not count there is a cost"
    if cost is not None:
        assert again is not None, "the cost is a function of the scores"
        assert cost.dtype == torch.float64, "a cost is float64"
        assert cost.shape == (n,), "there is one cost per sample"
        assert bool(torch.isfinite(cost).all()), "a cost is finite"
        assert not cost.requires_grad, "a cost has no gradient"
        assert torch.equal(cost, again), "the same scores give the same cost"
    _check_metric(objective, scores.influence, shape)


def _check_metric(objective: Objective, influence: Influence, shape: tuple[int, int]) -> None:
    assert callable(objective.metric), "metric is a function (factorised, shift)"
    size = shape[0] * shape[1]
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    found = objective.metric(influence.factorised, basis)
    single = objective.metric(influence.factorised, basis[0])
    assert single.shape == shape, "the metric keeps the shape of a shift"
    assert found.shape == basis.shape, "the metric keeps the shape of a stack of shifts"
    _close(single, found[0], "the metric treats a shift of a stack as it treats one alone")
    dense = found.view(size, size)
    _close(dense, dense.T, "the metric is symmetric")
    assert float(torch.linalg.eigvalsh((dense + dense.T) / 2)[0]) >= -1e-12, (
        "the metric is positive"
    )
    norm = replace(influence, metric=objective.metric).shift_norm(torch.arange(5))
    assert math.isfinite(norm), "a shift has a norm"


def _content(scores: Scores) -> list[Tensor]:
    parts = [part for part in (scores.measurements, scores.wanted) if part is not None]
    tensors = [] if scores.labels is None else [scores.labels]
    for held in (part.tokens for part in parts):
        tensors += [held.delta, held.inputs, held.losses, *held.hessian.tensors.values()]
    return [tensor.clone() for tensor in tensors]


def _same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def _each(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """Change every tensor of a batch."""
    if isinstance(batch, Tensor):
        return change(batch)
    if isinstance(batch, Mapping):
        return {name: _each(part, change) for name, part in batch.items()}
    assert isinstance(batch, (tuple, list)), "a batch is a tensor, tuple, list or mapping"
    return type(batch)(_each(part, change) for part in batch)


def _close(found: Tensor, expected: Tensor, promise: str, scale: float = 1.0) -> None:
    assert found.shape == expected.shape, f"{promise} (shapes {found.shape}, {expected.shape})"
    size = max(1e-30, float(expected.detach().abs().max()))
    error = float((found.detach().double() - expected.detach().double()).abs().max())
    limit = 1e-8 * max(1.0, scale) * max(1.0, size)
    assert error <= limit, f"{promise} (off by {error:.3g}, where {limit:.1g} is rounding)"


def _refuses(call: Callable[[], Any]) -> bool:
    try:
        call()
    except (ValueError, TypeError):
        return True
    return False


def _global_random() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def _same_random(left: tuple[Any, ...], right: tuple[Any, ...]) -> bool:
    same = all(np.array_equal(a, b) for a, b in zip(left[1], right[1], strict=True))
    return left[0] == right[0] and same and torch.equal(left[2], right[2])
