"""The best of all sets, found by trying every one: what solvers are compared with."""

from __future__ import annotations

import math

import torch

from prunesampler.solve.problem import Problem, Solution

MOST = 24  # free samples: 16 million sets


def exhaustive(
    influence, budget, *, labels=None, constraints=None, cost=None, seed=0, progress=None
):
    """A solver like the package's own, in the influence's metric. With epsilon every count is tried."""
    del seed
    problem = Problem.of(influence, budget, labels, constraints, cost)
    assert len(problem) <= MOST
    sets = ((torch.arange(2 ** len(problem))[:, None] >> torch.arange(len(problem))) & 1).double()
    counts = sets.sum(1) + len(problem.forced)
    norms, n = summed_norms(problem, sets), len(influence)
    most, least = problem.count(), len(problem.forced)
    for count in range(most, (least if budget.epsilon is not None else most) - 1, -1):
        allowed = within_floors(sets, problem, count) & (counts == count)
        energy = norms + random_norm(problem, count) * (
            sets @ torch.from_numpy(problem.costs(max(1, count)))
        )
        if budget.epsilon is not None:
            allowed &= norms * n / (n - counts) <= budget.epsilon * (1 + 1e-12)
        if allowed.any():
            energy[~allowed] = math.inf
            found = problem.solution(problem.samples(sets[energy.argmin()].bool().numpy()))
            break
    if progress:
        progress(1, 1)
    assert isinstance(found, Solution)
    return found


def summed_norms(problem, sets):
    """Norm, in the metric, of the summed influence of each set, forced samples included."""
    influence, n = problem.influence, len(problem.influence)
    gradients = [influence.gradient_sum(problem.forced)]
    gradients += [influence.gradient_sum(sample[None]) for sample in problem.free]
    shifts = influence.factorised.apply_inverse(torch.stack(gradients))
    gram = shifts.flatten(1) @ influence.metric(influence.factorised, shifts).flatten(1).T
    squares = (sets @ gram[1:, 1:] * sets).sum(1) + 2 * sets @ gram[1:, 0] + gram[0, 0]
    return squares.clamp(min=0).sqrt() / n


def random_norm(problem, count):
    """Root mean square, in the metric, of the summed influence of random sets."""
    n = len(problem.influence)
    spread = float(problem.influence.sample_squares().sum())
    return math.sqrt(count * (n - count) / (n * (n - 1)) * spread) / n


def within_floors(sets, problem, count):
    """Which sets leave every class its floor."""
    spare = torch.from_numpy(problem.spare(count))
    if not len(spare):
        return torch.ones(len(sets), dtype=torch.bool)
    classes = torch.nn.functional.one_hot(torch.from_numpy(problem.classes()), len(spare))
    return (sets @ classes.double() <= spare).all(1)
