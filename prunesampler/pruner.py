"""From a model and a dataset to a selection, the same on all processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prunesampler.base.checks import checked_labels, checked_seed, warn
from prunesampler.base.memory import Room
from prunesampler.base.processes import current_group, together
from prunesampler.influence.automatic import AutoCurvature
from prunesampler.influence.curvature import Curvature
from prunesampler.measure.gradients import GradientSource
from prunesampler.measure.heads import Losses
from prunesampler.measure.isolation import unwrap
from prunesampler.measure.losses import ClosedFormLoss, CrossEntropy
from prunesampler.measure.measurer import Measurer
from prunesampler.measure.reading import Reading
from prunesampler.measure.scored_set import ScoredSet
from prunesampler.measure.tokens import TokenCrossEntropy
from prunesampler.report.text import tell
from prunesampler.sampling.loaders import check_batches
from prunesampler.select.arguments import check_can_be_met, check_objects
from prunesampler.select.choosing import choose_together, frontier_together
from prunesampler.select.estimate import Announced, Estimate, estimate
from prunesampler.select.from_scores import AnswersFromScores
from prunesampler.select.frontier import Frontier
from prunesampler.select.objectives import KeepHead, Objective
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection
from prunesampler.select.selector import Selector
from prunesampler.solve.annealing import anneal
from prunesampler.solve.budget import Budget, Constraints
from prunesampler.solve.solvers import Solver


class InfluencePruner(AnswersFromScores):
    """Measures every sample of a dataset and chooses which to prune.

    `select` makes one pass over the data, computes each sample's influence on the parameters of the
    last linear layer, and solves the selection problem. It leaves the model, its gradients and the
    random numbers as they were.

    Args:
        score_dataset: The training set without augmentation, of the same length and order.
        budget: How much to prune.
        head: The layer to measure, or its name: an ``nn.Linear``, a 1 x 1 convolution, or a layer
            that computes the same. Default: the last one that runs.
        losses: ``losses(model, batch)`` returns one unreduced loss per sample, shape (b,). Default:
            cross-entropy on a batch ``(x, y)`` or a mapping with ``labels``; for other batches give
            ``CrossEntropy(run=lambda model, batch: (logits, targets))``, for a loss at every token of a
            sequence `TokenCrossEntropy()`.
        labels: Class of every sample, for floors per class; default: the labels that the loss sees.
        gradients: Function that measures a batch in place of ``head`` and ``losses``.
        curvature: Approximation of the loss's curvature; default `AutoCurvature()`. Its damping
            should be the weight decay in use.
        solver: Function that finds the set; default `anneal`. Set a solver's options with
            ``functools.partial``.
        batch_size: Number of samples per forward pass; default: that of ``like``, else 256.
        num_workers: Number of processes that read the samples; default: that of ``like``, else 0.
            With at least one, this process does not read the dataset itself.
        progress: Whether to show progress bars.
        seed: Seed of the solver's random numbers.
        center: Whether to subtract the mean gradient (see `prunesampler.influence.influence`).
        collate_fn: Deterministic function that makes a batch of samples; default: that of ``like``,
            else torch's.
        like: Loader whose batch size, workers, collate function and pinned memory are used.
        constraints: Samples that must stay, and samples that must go.
        objective: Definition of a good set: `KeepHead`, the default, for the smallest shift of the
            layer, `Target` for the lowest loss on wanted samples, `Price` for a price per sample.

        storage: Folder for the measurements that are large, where memory is short. The files have no
            names, and nothing is left of them when the process ends.

    Attributes:
        heard: function that is called with the scores of every measurement, on rank 0, or None.

    Raises:
        TypeError: For anything but a map-style dataset.
        ValueError: For an empty dataset, a budget that does not fit it, or contradicting arguments.
    """

    def __init__(
        self,
        score_dataset: Dataset[Any],
        *,
        budget: Budget,
        head: nn.Module | str | None = None,
        losses: Losses | None = None,
        labels: Tensor | Sequence[int] | None = None,
        gradients: GradientSource | None = None,
        curvature: Curvature | None = None,
        solver: Solver | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        progress: bool = True,
        seed: int = 0,
        center: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        constraints: Constraints | None = None,
        objective: Objective | None = None,
        like: DataLoader[Any] | None = None,
        storage: str | os.PathLike[str] | None = None,
    ) -> None:
        self._data = ScoredSet(score_dataset)
        self.num_samples = self._data.num_samples
        if gradients is not None and (head is not None or losses is not None):
            raise ValueError("gradients= replaces head= and losses=; give one or the other")
        reading = Reading() if like is None else Reading.like(like)
        reading = replace(
            reading,
            batch_size=reading.batch_size if batch_size is None else batch_size,
            num_workers=reading.num_workers if num_workers is None else num_workers,
            collate_fn=reading.collate_fn if collate_fn is None else collate_fn,
        )
        objective = KeepHead() if objective is None else objective
        check_objects(budget, losses, curvature, solver, objective)
        labels = None if labels is None else checked_labels(labels, self.num_samples)
        check_can_be_met(budget, self.num_samples, labels, constraints)
        objective.check(self.num_samples)
        self.budget = budget
        losses = CrossEntropy() if losses is None else losses
        self._selector = Selector(
            num_samples=self.num_samples,
            budget=budget,
            objective=objective,
            curvature=AutoCurvature() if curvature is None else curvature,
            solver=anneal if solver is None else solver,
            labels=labels,
            constraints=constraints,
            center=center,
            seed=checked_seed(seed),
            lipschitz=None if gradients else getattr(losses, "lipschitz", None),
        )
        self._measurer = Measurer(
            head=head,
            losses=losses,
            gradients=gradients,
            reading=reading,
            progress=progress,
            keep=self._selector.keep,
            announce=Announced(
                self.num_samples,
                self._selector.curvature,
                on_disk=storage is not None,
                say=partial(tell, progress=progress),
            ),
            room=Room(None if storage is None else Path(storage)),
        )
        self.dataset, self.progress = score_dataset, progress
        self.heard: Callable[[Scores], None] | None = None
        self._own_collate = collate_fn is not None or like is not None
        known = (ClosedFormLoss, TokenCrossEntropy)
        self._own_losses = gradients is None and not isinstance(losses, known)

    def select(self, model: nn.Module) -> Selection:
        """Measure all samples with this model and choose the ones to prune.

        Call it on all processes of a run: each measures its part, rank 0 solves, and all get the
        same selection. A single process gets that one too if it computes with as many threads
        (torchrun sets OMP_NUM_THREADS=1). With another number of threads the forward pass may round
        differently, and annealing may then find another, equally good set. A warning tells when the
        set is no better than a random one, or when floors per class are off.

        Args:
            model: The model as it is trained, also in DistributedDataParallel or torch.compile.

        Raises:
            ValueError: If the data, the model or the budget make the influence meaningless.
            RuntimeError: If another rank failed, or did not call this.
        """
        scores = self.measure(model)
        return self._warned(
            choose_together(scores, self._selector.select, "solving", self.progress)
        )

    def choose(self, epoch: int, model: nn.Module) -> Selection:
        """What the callback calls before an epoch: :meth:`select`, whatever the epoch."""
        del epoch
        return self.select(model)

    def check_order(self, training_set: Dataset[Any]) -> None:
        """Warn if labels differ from those of the training set: then the order does too."""
        self._data.check_order(training_set, self.reading)

    def frontier(
        self,
        model: nn.Module,
        fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    ) -> Frontier:
        """Select at every fraction, from one pass over the data; call it on all processes.

        Nothing is pruned by this: use the result to choose a budget, or give one of its selections
        to ``sampler.restrict``.

        Args:
            model: The model as it is trained.
            fractions: Shares of the dataset to prune, each in (0, 1), in any order.

        Raises:
            ValueError: If there is no fraction, or one cannot be met; also as in `select`.
        """
        if not len(fractions):
            raise ValueError("fractions must hold at least one fraction of the dataset to prune")
        for fraction in fractions:
            replace(self.budget, fraction=fraction, count=None, epsilon=None).count_of(
                self.num_samples
            )
        group = self._data.meet("frontier", self.reading)
        group.check_equal("the fractions", repr(list(fractions)).encode())
        scores = self.measure(model)
        return frontier_together(scores, self._selector, fractions, self.progress)

    def measure(self, model: nn.Module) -> Scores | None:
        """Measure all samples; call it on all processes. It raises the errors of `select`.

        Returns:
            The scores on rank 0, None on the others.
        """
        group = self._data.meet("measure", self.reading)
        model = unwrap(model)
        started = time.perf_counter()
        group.check_equal("the pruners", self._settings())
        measured, *rest = self._measurer.measure(model, self._datasets(), group)
        seconds = time.perf_counter() - started

        def score() -> Scores | None:
            if measured is None:
                return None
            # With custom losses, classes are guessed from the batches; a single one is discarded.
            classes = measured.labels
            guessed = (
                self._own_losses and classes is not None and bool((classes == classes[0]).all())
            )
            found = replace(measured, labels=None) if guessed else measured
            wanted = next((part for part in rest if part is not None), None)
            scores = self._selector.scores(found, wanted, seconds)
            self._say_without_classes(scores)
            sure = self._selector.objective.wanted
            return replace(
                scores, layer=self._measurer.layer, outline=self.outline,
                wanted_outline=None if sure is None else ScoredSet(sure).look(self.reading),
            )  # fmt: skip

        scores = together(group, score)
        if scores is not None and self.heard is not None:
            self.heard(scores)
        return scores

    def check(self, model: nn.Module, *, loader: DataLoader[Any] | None = None) -> None:
        """Measure one batch on trial, to find mistakes before training; call it on all processes.

        It checks the layer, precisions, the size of the curvature, the collate function, the
        losses' curvature and that all processes read the same samples. Losses that are not finite
        pass, since they may be finite later.

        Args:
            model: The model as it is trained.
            loader: The training loader, to check its batches in pruned epochs too, or None.

        Raises:
            ValueError: As in `select`; also for a layer that is too large for the curvature.

        Examples:
            >>> import torch
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
            >>> pruner = InfluencePruner(data, budget=Budget(fraction=0.4))
            >>> pruner.check(torch.nn.Linear(4, 3))
        """
        group = self._data.meet("check", self.reading)
        measured, *_ = self._measurer.measure(unwrap(model), self._datasets(), group, trial=True)
        together(group, lambda: None if measured is None else self._selector.check(measured))
        if loader is not None and self.budget.epsilon is None and group.rank == 0:
            kept = self.num_samples - self.budget.count_of(self.num_samples)
            check_batches(unwrap(model), loader, kept)

    def estimate(self, model: nn.Module) -> Estimate | None:
        """Seconds and bytes that a selection will take, from a batch; on rank 0, else None.

        Call this on all processes. Print it, or read its fields.

        Args:
            model: The model as it is trained.

        Raises:
            ValueError: As `check`; also if memory would run out.

        Examples:
            >>> import torch
            >>> from torch.utils.data import TensorDataset
            >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
            >>> pruner = InfluencePruner(data, budget=Budget(fraction=0.4))
            >>> pruner.estimate(torch.nn.Linear(4, 3)).parameters
            10
        """
        self.check(model)
        group, model = current_group(), unwrap(model)
        started = time.perf_counter()
        batch, *_ = self._measurer.measure(model, self._datasets(), group, trial=True)
        seconds = (time.perf_counter() - started) * group.world
        if batch is None:
            return None
        return estimate(batch, self.num_samples, self._selector.curvature, seconds, group.world)

    @property
    def outline(self) -> str | None:
        """A hash of a few samples' labels and shapes, once some were read."""
        return self._data.outline

    @property
    def reading(self) -> Reading:
        """How samples are read."""
        return self._measurer.reading

    def look(self) -> str:
        """A hash of a few samples' labels and shapes, read by this process alone."""
        return self._data.look(self.reading)

    def lend_collate(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        """Make batches with this function, unless the pruner was given its own."""
        if not self._own_collate:
            self._measurer.reading = replace(self.reading, collate_fn=collate_fn)

    def _say_without_classes(self, scores: Scores) -> None:
        """Warn, once, when floors per class were asked for but the classes are unknown."""
        if self._own_losses and scores.labels is None and self.budget.min_per_class:
            self._own_losses = False
            warn(
                "these losses= do not tell the class of a sample, so the floor of min_per_class="
                f"{self.budget.min_per_class} is off: pass labels=, or "
                "losses=CrossEntropy(run=lambda model, batch: (logits, targets)), or a budget with "
                "min_per_class=0 if there are no classes"
            )

    def _datasets(self) -> list[Dataset[Any]]:
        """The dataset, and the samples that the objective wants, if any."""
        wanted = self._selector.objective.wanted
        return [self.dataset] if wanted is None else [self.dataset, wanted]
