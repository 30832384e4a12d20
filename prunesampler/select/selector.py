"""From scores to selections: everything after the pass over the data, on one process."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from prunesampler.base.checks import SEEDS, checked_cost, checked_labels
from prunesampler.base.progress import Progress
from prunesampler.costs import Cost
from prunesampler.influence.certificate import (
    convex_bound,
    kept_curvature,
    loss_bound,
    newton_shift,
    random_newton_shift,
    random_shift,
)
from prunesampler.influence.curvature import Curvature
from prunesampler.influence.factorised import Factorised
from prunesampler.influence.influence import Influence, Metric
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.scores import Scores, class_labels
from prunesampler.select.rotation import feasible, rotated
from prunesampler.select.selection import Selection
from prunesampler.solve.budget import Budget
from prunesampler.solve.constraints import Constraints
from prunesampler.solve.epsilon import Solution, largest_curved
from prunesampler.solve.problem import Problem
from prunesampler.solve.solvers import Solver


class Candidate(NamedTuple):
    """A solution, the curvature of the samples that it keeps, and its share of the full one."""

    solution: Solution
    kept: Factorised
    share: float


@dataclass(frozen=True, eq=False)
class Selector:
    """How to choose, once the samples are measured.

    Args:
        num_samples: n.
        budget: how much to prune.
        curvature: of the loss.
        solver: of the selection problem.
        metric: in which shifts are measured.
        labels: class of every sample, or None to take what the loss saw.
        constraints: what else to respect, or None.
        cost: linear cost, one number per sample or a function of the scores, or None.
        cost_weight: of the cost beside the shift.
        center: subtract the mean gradient.
        seed: of the solver.
        lipschitz: constant of the loss by the layer's outputs, or None.
    """

    num_samples: int
    budget: Budget
    curvature: Curvature
    solver: Solver
    metric: Metric
    labels: Tensor | None
    constraints: Constraints | None
    cost: Tensor | Cost | None
    cost_weight: float
    center: bool
    seed: int
    lipschitz: float | None

    def scores(
        self,
        measurements: Measurements,
        validation: Tensor | None,
        measuring_seconds: float,
        layer: str | None = None,
    ) -> Scores:
        """Factorise the curvature and build the influence.

        Args:
            measurements: measurements of all samples.
            validation: mean gradient of the validation samples, or None.
            measuring_seconds: what measuring took.
            layer: name of the scored layer, or None where it is not known.

        Raises:
            ValueError: when labels are below zero or there is but one class, or the curvature
                cannot be factorised.
        """
        started = time.perf_counter()
        labels = class_labels(
            measurements.labels if self.labels is None else self.labels, self.num_samples
        )
        factor = self.curvature.factorise(measurements)
        influence = Influence.build(
            measurements.rows(), factor, center=self.center, metric=self.metric
        )
        seconds = {"measuring_seconds": measuring_seconds, "curvature_seconds": _since(started)}
        return Scores(measurements, influence, labels, validation, seconds, layer)

    def check(self, measurements: Measurements) -> None:
        """Find out from a few samples' measurements what could not be selected from all of them.

        Raises:
            ValueError: when the curvature refuses a layer of this size or has nothing to work on,
                or a label is below zero.
        """
        if measurements.labels is not None:
            checked_labels(measurements.labels, len(measurements))
        self.curvature.check(measurements, self.num_samples)

    def select(self, scores: Scores, progress: Progress | None) -> Selection:
        """Solve the selection problem and certify the answer.

        Raises:
            ValueError: when the budget cannot be met.
        """
        return self._certified(scores, *self._solved(scores, progress), progress)

    def redraw(
        self, scores: Scores, ages: Tensor, progress: Progress | None, *, certify: bool
    ) -> Selection:
        """Another selection from the same scores, for which the samples left out longest come back.

        Args:
            scores: of all samples.
            ages: see `prunesampler.select.rotation`.
            progress: see `prunesampler.base.progress.Progress`.
            certify: compute the Newton shift and the kept curvature too; without, a draw is quick.
        """
        started = time.perf_counter()
        problem = Problem.of(scores.influence, self.budget, scores.labels, self.constraints)
        turn = rotated(problem, ages, self.constraints)
        given = self.constraints or Constraints()
        # Groups and quotas may not fit into the rotation: then it asks for less.
        softer = (turn, replace(turn, prune=given.prune), given)
        turned = replace(
            self,
            constraints=next((c for c in softer if feasible(problem, c)), given),
            # Another search at every draw.
            seed=(self.seed + int(ages.abs().sum()) % 2**31) % SEEDS,
        )
        solution, _ = turned._solved(scores, progress)
        seconds = _since(started)
        if certify or self.budget.epsilon is not None:
            return turned._certified(scores, solution, seconds, progress)
        return self._report(scores, solution, seconds, time.perf_counter())

    def frontier(
        self, scores: Scores, fractions: Sequence[float], nested: bool, progress: Progress | None
    ) -> list[Selection]:
        """One certified selection per fraction, from the smallest to the largest.

        Args:
            scores: of all samples.
            fractions: of the dataset to prune.
            nested: let every set hold the ones before it.
            progress: see `prunesampler.base.progress.Progress`.
        """
        found: list[Selection] = []
        for number, fraction in enumerate(sorted(fractions)):
            budget = replace(self.budget, fraction=fraction, count=None, epsilon=None)
            constraints = self.constraints
            if nested and found:
                given = self.constraints or Constraints()
                constraints = replace(given, prune=found[-1].pruned)
            found.append(replace(self, budget=budget, constraints=constraints).select(scores, None))
            if progress:
                progress(number + 1, len(fractions))
        return found

    def _solved(self, scores: Scores, progress: Progress | None) -> tuple[Solution, float]:
        started = time.perf_counter()
        solution = self.solver(
            scores.influence, self.budget, labels=scores.labels, constraints=self.constraints,
            cost=self._weighed_cost(scores), seed=self.seed, progress=progress,
        )  # fmt: skip
        return solution, _since(started)

    def _weighed_cost(self, scores: Scores) -> Tensor | None:
        """The cost in standard deviations, times its weight."""
        if self.cost is None:
            return None
        given = self.cost(scores) if callable(self.cost) else self.cost
        cost = checked_cost(given, self.num_samples)
        cost = cost / (float(cost.abs().max()) or 1.0)  # squares of huge costs would overflow
        deviation = float(cost.std())
        return self.cost_weight * (cost - cost.mean()) / (deviation or 1.0)

    def _certified(
        self, scores: Scores, solution: Solution, seconds: float, progress: Progress | None
    ) -> Selection:
        """The selection with all that needs the kept samples' curvature."""
        started, influence = time.perf_counter(), scores.influence
        found, again = self._candidate(scores, solution), 0.0
        if self.budget.epsilon is not None and found.share < self.budget.min_curvature:
            refused, share = len(found.solution.pruned), found.share
            del found  # its matrices are large, and more of them are to come
            found, again = self._curved(scores, refused, share, progress)
        pruned = found.solution.pruned
        newton = influence.norm(newton_shift(found.kept, influence, pruned))
        solution, share = found.solution, found.share
        del found
        random = random_newton_shift(
            self.curvature, scores.measurements, influence, len(pruned), self.seed
        )
        selection = self._report(scores, solution, seconds + again, started + again, random)
        return replace(selection, newton_shift=newton, curvature_share=share)

    def _candidate(self, scores: Scores, solution: Solution) -> Candidate:
        """The solution with the curvature of what it keeps."""
        samples, influence = scores.measurements, scores.influence
        return Candidate(
            solution, *kept_curvature(self.curvature, samples, influence, solution.pruned)
        )

    def _curved(
        self, scores: Scores, refused: int, share: float, progress: Progress | None
    ) -> tuple[Candidate, float]:
        """A smaller set within epsilon that leaves enough curvature, and the seconds of solving.

        ``refused`` samples were pruned, which left this ``share``: too little.

        Raises:
            ValueError: when the samples that must go leave too little.
        """
        least, epsilon = self.budget.min_curvature, self.budget.epsilon or 0.0
        forced = Problem.of(scores.influence, self.budget, None, self.constraints).forced
        seconds: list[float] = []

        def attempt(size: int) -> Candidate | None:
            capped = replace(self.budget, max_fraction=size / self.num_samples)
            solution, again = replace(self, budget=capped)._solved(scores, progress)
            seconds.append(again)
            found = self._candidate(scores, solution)
            return found if found.share >= least else None

        best = largest_curved(refused, len(forced), attempt)
        if best is None:
            norm = scores.influence.shift_norm(forced) if len(forced) else 0.0
            best = self._candidate(scores, Solution(forced, norm))
            if best.share < least or norm > epsilon:
                raise ValueError(
                    f"pruning {refused} samples leaves {share:.3g} of the curvature in some "
                    f"direction, less than min_curvature={least}, and no smaller set with the "
                    f"{len(forced)} samples in prune= was found that leaves more; lower "
                    "min_curvature, or take samples out of prune="
                )
        return best, sum(seconds)

    def _report(
        self,
        scores: Scores,
        solution: Solution,
        seconds: float,
        started: float,
        random_newton: float | None = None,
    ) -> Selection:
        """The selection with all that is cheap to know; ``started`` is when certifying began."""
        influence, pruned = scores.influence, solution.pruned
        # Only a damping that was given is the penalty in use; the default one proves nothing.
        penalty = getattr(self.curvature, "damping", None) if self.center else None
        bound = convex_bound(influence, pruned, penalty) if penalty else None
        on_loss = None
        if bound is not None and self.lipschitz is not None:
            on_loss = loss_bound(bound, scores.measurements.inputs, self.lipschitz)
        random = random_shift(influence, len(pruned), self.seed)
        return Selection(
            pruned=pruned,
            num_samples=self.num_samples,
            shift=float(solution.norm),
            newton_shift=math.nan,
            bound=bound,
            budget=self.budget,
            loss_bound=on_loss,
            metadata={
                **scores.seconds,
                "solving_seconds": seconds,
                "certificate_seconds": _since(started),
                "curvature": type(self.curvature).__name__,
                "metric": getattr(self.metric, "__name__", repr(self.metric)),
                "damping": influence.factorised.damping,
                "parameters": math.prod(influence.gradients.shape),
                "random_shift": random,
                "random_newton_shift": random_newton,
                "mean_loss": float(scores.measurements.losses.mean()),
                "layer": scores.layer,
                "cost": self.cost is not None,
            },
        )


def _since(started: float) -> float:
    return time.perf_counter() - started
