"""From scores to selections: everything after the pass over the data, on one process."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from prunesampler.base.checks import SEEDS, checked_labels, warn
from prunesampler.base.progress import Progress
from prunesampler.influence.automatic import AutoCurvature
from prunesampler.influence.certificate import (
    convex_bound,
    kept_curvature,
    loss_bound,
    newton_shift,
    random_newton_shift,
    random_shift,
)
from prunesampler.influence.curvature import Curvature
from prunesampler.influence.headroom import headroom
from prunesampler.influence.influence import Influence
from prunesampler.influence.sequences import Measured
from prunesampler.influence.states import class_labels
from prunesampler.influence.top import check_kept_outputs
from prunesampler.influence.top_rows import TopHessian
from prunesampler.select.objectives import Objective
from prunesampler.select.rotation import rotated
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.problem import Problem, Solution
from prunesampler.solve.solvers import Solver, cheapest

INEXACT = 1e-2
"""Residual above which a shift is no longer what it seems."""


@dataclass(frozen=True, eq=False)
class Selector:
    """Selects from measured samples, with fixed settings.

    Args:
        num_samples: Number of samples n.
        budget: How much to prune.
        objective: Definition of a good set.
        curvature: Approximation of the loss's curvature.
        solver: Function that finds the set.
        labels: Class of every sample, or None to use the labels that the loss saw.
        constraints: Samples that must stay or go, or None.
        center: Whether the mean gradient is subtracted.
        seed: Seed of the solver's random numbers.
        lipschitz: Lipschitz constant of the loss by the layer's outputs, or None.

    Examples:
        >>> import torch
        >>> from prunesampler import ExactCurvature, InfluencePruner, KeepHead, anneal
        >>> data, budget = [(torch.randn(4), i % 3) for i in range(60)], Budget(count=20)
        >>> scores = InfluencePruner(data, budget=budget).measure(torch.nn.Linear(4, 3))
        >>> options = (KeepHead(), ExactCurvature(), anneal, None, None, True, 0, None)
        >>> len(Selector(60, budget, *options).select(scores, None).pruned)
        20
    """

    num_samples: int
    budget: Budget
    objective: Objective
    curvature: Curvature
    solver: Solver
    labels: Tensor | None
    constraints: Constraints | None
    center: bool
    seed: int
    lipschitz: float | None

    def scores(
        self,
        measurements: Measured,
        wanted: Measured | None,
        measuring_seconds: float,
        layer: str | None = None,
    ) -> Scores:
        """Factorise the curvature and build the influence.

        Args:
            measurements: Measurements of all samples.
            wanted: Measurements of the objective's wanted samples, or None.
            measuring_seconds: Number of seconds that measuring took.
            layer: Name of the scored layer, or None where it is not known.

        Raises:
            ValueError: If a label is below zero, there is only one class, or the curvature
                cannot be factorised.
        """
        started = time.perf_counter()
        check_kept_outputs(measurements)
        labels = class_labels(
            measurements.labels if self.labels is None else self.labels, self.num_samples
        )
        influence = Influence.build(
            measurements.rows(),
            self.curvature.factorise(measurements),
            center=self.center,
            metric=self.objective.metric,
        )
        seconds = {"measuring_seconds": measuring_seconds, "curvature_seconds": _since(started)}
        return Scores(
            measurements,
            influence,
            labels,
            wanted,
            self.curvature,
            self.center,
            self.lipschitz,
            seconds,
            layer,
        )

    def keep(self, measurements: Measured) -> Measured:
        """What to keep of a batch, once the objective has seen that it can judge it.

        Raises:
            ValueError: If it cannot.
        """
        self.objective.check_measured(measurements)
        return self.curvature.keep(measurements)

    def check(self, measurements: Measured) -> None:
        """Check with the measurements of a few samples that selecting from all can work.

        Raises:
            ValueError: If the layer is too large for the curvature, the loss has no curvature,
                or a label is below zero.
        """
        if measurements.labels is not None:
            checked_labels(measurements.labels, len(measurements))
        self.curvature.check(measurements, self.num_samples)

    def select(self, scores: Scores, progress: Progress | None) -> Selection:
        """Solve the selection problem and certify the answer.

        Raises:
            ValueError: If the budget cannot be met.
        """
        return self._certified(scores, *self._solved(scores, progress))

    def redraw(
        self, scores: Scores, ages: Tensor, progress: Progress | None, *, certify: bool
    ) -> Selection:
        """Select again from the same scores, so that the samples left out longest come back.

        Args:
            scores: Scores of all samples.
            ages: Ages of all samples, int64, shape (n,); see `prunesampler.select.rotation`.
            progress: Called as the solver advances, or None.
            certify: Whether to compute the Newton shift and the kept curvature, which takes longer.
        """
        started = time.perf_counter()
        problem = Problem.of(scores.influence, self.budget, scores.labels, self.constraints)
        turned = replace(
            self,
            constraints=rotated(problem, ages),
            # Every draw searches with other random numbers.
            seed=(self.seed + int(ages.abs().sum()) % 2**31) % SEEDS,
        )
        solution, _ = turned._solved(scores, progress)
        seconds = _since(started)
        if certify or self.budget.epsilon is not None:
            return turned._certified(scores, solution, seconds)
        return self._report(scores, solution, seconds, time.perf_counter())

    def frontier(
        self, scores: Scores, fractions: Sequence[float], progress: Progress | None
    ) -> list[Selection]:
        """One certified selection per fraction, from the smallest to the largest.

        Args:
            scores: Scores of all samples.
            fractions: Shares of the dataset to prune.
            progress: Called with the number of fractions that are done, or None.
        """
        found: list[Selection] = []
        for fraction in sorted(fractions):
            budget = replace(self.budget, fraction=fraction, count=None, epsilon=None)
            found.append(replace(self, budget=budget).select(scores, None))
            if progress:
                progress(len(found), len(fractions))
        return found

    def _solved(self, scores: Scores, progress: Progress | None) -> tuple[Solution, float]:
        """The solution, and the number of seconds that solving took."""
        started, influence = time.perf_counter(), scores.influence
        getattr(influence.factorised, "residuals", []).clear()  # those of this selection follow
        cost = self.objective.cost(scores)
        if self.objective.shift:
            solution = self.solver(
                influence, self.budget, labels=scores.labels, constraints=self.constraints,
                cost=cost, seed=self.seed, progress=progress,
            )  # fmt: skip
        else:
            problem = Problem.of(influence, self.budget, scores.labels, self.constraints, cost)
            solution = cheapest(problem, self.seed)
        return solution, _since(started)

    def _certified(self, scores: Scores, solution: Solution, seconds: float) -> Selection:
        """The selection with the Newton shift and the kept curvature."""
        started, influence, pruned = time.perf_counter(), scores.influence, solution.pruned
        kept, share = kept_curvature(scores.curvature, scores.measurements, influence, pruned)
        newton = influence.norm(newton_shift(kept, influence, pruned))
        getattr(influence.factorised, "residuals", []).extend(getattr(kept, "residuals", []))
        del kept  # its matrices are large, and the next call makes more
        random = random_newton_shift(
            scores.curvature, scores.measurements, influence, len(pruned), self.seed
        )
        selection = self._report(scores, solution, seconds, started, random)
        return replace(selection, newton_shift=newton, curvature_share=share)

    def _curvature(self, scores: Scores) -> Curvature:
        """The curvature that made these scores."""
        if isinstance(scores.curvature, AutoCurvature):
            measured = scores.measurements
            outputs = measured.hessian.size()[0]
            return scores.curvature.of(len(measured.tokens), measured.parameters, outputs)
        return scores.curvature

    def _report(
        self,
        scores: Scores,
        solution: Solution,
        seconds: float,
        started: float,
        random_newton: float | None = None,
    ) -> Selection:
        """The selection with its cheap figures; certifying began at the time ``started``."""
        influence, pruned = scores.influence, solution.pruned
        # Only a damping that was given is the penalty in use; the default one proves nothing.
        penalty = getattr(scores.curvature, "damping", None) if scores.centred else None
        if isinstance(scores.measurements.hessian, TopHessian):
            penalty = None  # the gradients are not quite those of the loss
        bound = convex_bound(influence, pruned, penalty) if penalty else None
        on_loss = None
        if bound is not None and scores.lipschitz is not None:
            on_loss = loss_bound(bound, scores.measurements.tokens.inputs, scores.lipschitz)
        random = random_shift(influence, len(pruned), self.seed)
        residual = max(getattr(influence.factorised, "residuals", []), default=None)
        if residual is not None and residual > INEXACT:
            warn(
                f"conjugate gradients ended at a residual of {residual:.2g}, so the reported shifts "
                f"{'mean nothing' if residual > 0.5 else 'are too small'}: the damping {influence.factorised.damping:.3g} is too small for "
                f"{len(influence)} samples; give the curvature the weight decay in use"
            )
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
                "curvature": type(self._curvature(scores)).__name__,
                "residual": residual,
                "metric": getattr(influence.metric, "__name__", repr(influence.metric)),
                "damping": influence.factorised.damping,
                "parameters": math.prod(influence.gradients.shape),
                "random_shift": random,
                "random_newton_shift": random_newton,
                "mean_loss": float(scores.measurements.losses.mean()),
                "headroom": headroom(scores.measurements.errors),
                "layer": scores.layer,
                "cost": type(self.objective).cost is not Objective.cost,
            },
        )


def _since(started: float) -> float:
    return time.perf_counter() - started
