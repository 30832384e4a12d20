"""From a model and a dataset to a selection, the same on all processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from prunesampler.annealing import anneal
from prunesampler.budget import Budget
from prunesampler.checks import checked_cost, checked_labels, dataset_size, whole_number
from prunesampler.constraints import Constraints
from prunesampler.costs import Cost, validation_loss
from prunesampler.curvature import Curvature, ExactCurvature
from prunesampler.distributed import current_group, together
from prunesampler.frontier import Frontier
from prunesampler.gradients import GradientSource, Losses
from prunesampler.guarantee import Progress
from prunesampler.influence import Metric, parameter_distance
from prunesampler.isolation import unwrap
from prunesampler.loaders import some_of
from prunesampler.losses import CrossEntropy
from prunesampler.measuring import Measurer, advance, progress_bar
from prunesampler.scores import Scores, read_measurements
from prunesampler.selection import Selection
from prunesampler.selector import Selector
from prunesampler.solvers import Solver


class InfluencePruner:
    """Measures every sample of a dataset and chooses which to prune.

    `select` takes one forward pass over the data, turns it into influences on the last linear
    layer's parameters, and solves the selection problem. Model, gradients and random numbers are
    afterwards as they were before.

    Args:
        score_dataset: the training set as seen without augmentation: same length, same order.
        budget: how much to prune.
        head: the ``nn.Linear`` to score, or its name. Default: the last one that runs.
        losses: ``losses(model, batch)`` returns one unreduced loss per sample, shape (b,). Default:
            cross-entropy on a batch ``(x, y)`` or a mapping with ``labels``.
        labels: class of every sample, for floors per class; default: what the loss sees.
        gradients: measures a batch in place of ``head`` and ``losses``.
        curvature: default `ExactCurvature()`; give it the weight decay in use as damping.
        solver: default `anneal`; set a solver's options with ``functools.partial``.
        batch_size: samples per forward pass.
        num_workers: of the scoring loader.
        progress: show progress bars.
        seed: of the solver.
        center: subtract the mean gradient (see `prunesampler.influence`).
        collate_fn: of the scoring loader; default: torch's.
        constraints: samples to keep or to prune, and groups that go together.
        cost: what pruning each sample costs beside the shift: one number per sample, or a function
            of the scores such as `prunesampler.costs.el2n`. The lowest go first.
        cost_weight: of the cost, in standard deviations: with weight 1, one standard deviation in
            the mean cost of the pruned counts as much as the whole shift of a random set.
        validation: samples whose loss `prunesampler.costs.validation_loss` is about, measured with
            every selection; same form as ``score_dataset``.
        metric: of epsilon and of reported shifts: `parameter_distance`, the paper's, or
            `loss_distance`. The set for a fraction is searched in whitened coordinates in any case.

    Raises:
        TypeError: for anything but a map-style dataset.
        ValueError: for an empty dataset, a budget that does not fit it, or contradicting arguments.
    """

    def __init__(
        self,
        score_dataset: Dataset[Any],
        *,
        budget: Budget,
        head: nn.Linear | str | None = None,
        losses: Losses | None = None,
        labels: Tensor | Sequence[int] | None = None,
        gradients: GradientSource | None = None,
        curvature: Curvature | None = None,
        solver: Solver | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
        progress: bool = True,
        seed: int = 0,
        center: bool = True,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        constraints: Constraints | None = None,
        cost: Tensor | Sequence[float] | Cost | None = None,
        cost_weight: float = 1.0,
        validation: Dataset[Any] | None = None,
        metric: Metric = parameter_distance,
    ) -> None:
        self.num_samples = dataset_size(score_dataset)
        if gradients is not None and (head is not None or losses is not None):
            raise ValueError("gradients= replaces head= and losses=; give one or the other")
        if whole_number("batch_size", batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_objects(budget, losses, curvature, solver)
        budget.size(self.num_samples)
        if not 0 <= cost_weight < float("inf"):
            raise ValueError(f"cost_weight must be zero or more and finite, got {cost_weight}")
        if constraints is not None:
            constraints = constraints.checked(self.num_samples)
        if cost is not None and not callable(cost):
            cost = checked_cost(cost, self.num_samples)
        if validation is not None:
            dataset_size(validation)
        elif cost is validation_loss:
            raise ValueError(
                "cost=validation_loss needs validation samples: pass validation= to the pruner"
            )
        self.budget = budget
        losses = CrossEntropy() if losses is None else losses
        self._selector = Selector(
            num_samples=self.num_samples,
            budget=budget,
            curvature=ExactCurvature() if curvature is None else curvature,
            solver=anneal if solver is None else solver,
            metric=metric,
            labels=None if labels is None else checked_labels(labels, self.num_samples),
            constraints=constraints,
            cost=cost,
            cost_weight=cost_weight,
            center=center,
            seed=whole_number("seed", seed),
            lipschitz=None if gradients else getattr(losses, "lipschitz", None),
        )
        self._measurer = Measurer(
            head=head,
            losses=losses,
            gradients=gradients,
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=default_collate if collate_fn is None else collate_fn,
            progress=progress,
        )
        self.dataset, self._validation = score_dataset, validation
        self._batch_size, self.progress = batch_size, progress

    def select(self, model: nn.Module) -> Selection:
        """Measure all samples with this model and choose the ones to prune.

        In a run of several processes call it on all of them: each measures its share, rank 0
        solves, and all get the same selection. It is also the one that a single process gets, if
        that computes with as many threads per process (torchrun sets OMP_NUM_THREADS=1): another
        number may round the forward pass differently, and annealing turns the last bit into
        another, equally good set.

        Args:
            model: as it is trained; wrappers of DistributedDataParallel and torch.compile are seen
                through.

        Raises:
            ValueError: for anything about the data, the model or the budget that makes the
                influence meaningless; the message says what and what to do.
            RuntimeError: when another rank failed.
        """
        scores = self.measure(model)
        return self._shared(scores, "solving", self._selector.select)

    def frontier(
        self,
        model: nn.Module,
        fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
        *,
        nested: bool = False,
    ) -> Frontier:
        """What pruning would cost at every fraction, from one pass over the data.

        Call it on all processes, as `select`. It changes nothing: look at it, then choose a budget,
        or give one of its selections to ``sampler.restrict``.

        Args:
            model: as it is trained.
            fractions: of the dataset, each in (0, 1), in any order.
            nested: let every set hold the smaller ones. Costs shift: there is less to choose from.

        Raises:
            ValueError: for no fraction, or one that cannot be met.
        """
        if not len(fractions):
            raise ValueError("fractions must hold at least one fraction of the dataset to prune")
        for fraction in fractions:
            replace(self.budget, fraction=fraction, count=None, epsilon=None).size(self.num_samples)
        group = current_group()
        group.check_equal("the fractions", repr((list(fractions), nested)).encode())
        scores = self.measure(model)

        def solve() -> list[bytes]:
            if scores is None:
                return [b""] * len(fractions)
            with progress_bar("solving", 1, self.progress) as bar:
                found = self._selector.frontier(scores, fractions, nested, advance(bar))
            return [selection.to_bytes() for selection in found]

        data = [group.broadcast_bytes(part) for part in together(group, solve)]
        return Frontier(tuple(Selection.from_bytes(part) for part in data))

    def redraw(self, scores: Scores | None, ages: Tensor, *, certify: bool = False) -> Selection:
        """Another selection from scores at hand; call it on all processes.

        Args:
            scores: of `measure`, on rank 0; None on the others.
            ages: for how many draws in a row each sample was left out, or kept as a negative
                number, int64, shape (n,). Zeros give what `select` gives.
            certify: compute the Newton shift and the kept curvature too, which takes longer.
        """
        return self._shared(
            scores,
            "redrawing",
            lambda held, show: self._selector.redraw(held, ages, show, certify=certify),
        )

    def measure(self, model: nn.Module) -> Scores | None:
        """One pass over the data: the scores on rank 0, None on the other processes.

        Args:
            model: as it is trained.

        Raises:
            ValueError: see `select`.
            RuntimeError: when another rank failed.
        """
        group = current_group()
        model = unwrap(model)
        started = time.perf_counter()
        group.check_equal("the pruners", self._settings())
        datasets = [self.dataset, *self._held_out()]
        measured, *rest = self._measurer.measure(model, datasets, group)
        seconds = time.perf_counter() - started

        def score() -> Scores | None:
            if measured is None:
                return None
            means = [part.rows().sum() / len(part) for part in rest if part is not None]
            return self._selector.scores(measured, means[0] if means else None, seconds)

        return together(group, score)

    def check(self, model: nn.Module) -> None:
        """Score a batch per process, to find out early what cannot be scored; call it on all.

        Losses that are not finite are let pass: they may become so.

        Args:
            model: as it is trained.

        Raises:
            ValueError: see `select`; also for a layer that the curvature finds too large.
        """
        group, datasets = current_group(), [self.dataset, *self._held_out()]
        few = [some_of(dataset, self._batch_size * group.size) for dataset in datasets]
        measured, *_ = self._measurer.measure(unwrap(model), few, group, trial=True)
        together(group, lambda: None if measured is None else self._selector.check(measured))

    def scores_from(self, state: Mapping[str, Any]) -> Scores:
        """Scores from their ``state_dict``, without a pass over the data; on rank 0.

        Raises:
            ValueError: when the state is not whole, or of another dataset.
        """
        gradients, validation = read_measurements(state, self.num_samples)
        return self._selector.scores(gradients, validation, 0.0)

    def _shared(
        self,
        scores: Scores | None,
        name: str,
        choose: Callable[[Scores, Progress], Selection],
    ) -> Selection:
        """Choose on rank 0, and give the same selection to all."""
        group = current_group()

        def solve() -> bytes | None:
            if scores is None:
                return None
            with progress_bar(name, 1, self.progress) as bar:
                return choose(scores, advance(bar)).to_bytes()

        selection = Selection.from_bytes(group.broadcast_bytes(together(group, solve)))
        group.check_equal("the kept sets", selection.kept.numpy().tobytes())
        return selection

    def _held_out(self) -> list[Dataset[Any]]:
        """The validation set, if there is one."""
        return [] if self._validation is None else [self._validation]

    def _settings(self) -> bytes:
        """What must be the same on all ranks."""
        chosen, held_out = self._selector, self._validation
        cost = chosen.cost.numpy().tobytes() if isinstance(chosen.cost, Tensor) else b""
        constraints = b"" if chosen.constraints is None else chosen.constraints.to_bytes()
        settings = (
            self.num_samples, self._batch_size, chosen.seed, self.budget, chosen.cost_weight,
            None if held_out is None else dataset_size(held_out),
        )  # fmt: skip
        return repr(settings).encode() + b"|" + cost + b"|" + constraints


def _check_objects(budget: object, losses: object, curvature: object, solver: object) -> None:
    """Refuse what looks like an argument and is none: classes, names, torch's own losses."""
    if not isinstance(budget, Budget):
        raise TypeError(f"budget must be a Budget, such as Budget(fraction=0.4), got {budget!r}")
    home = getattr(losses, "__module__", None) or ""
    if losses is not None and (
        not callable(losses) or isinstance(losses, (type, nn.Module)) or home.startswith("torch.nn")
    ):
        raise TypeError(
            f"losses must be a function (model, batch) -> one loss per sample, got {losses!r}; use "
            "CrossEntropy(), BinaryCrossEntropy() or SquaredError() of prunesampler, or your own"
        )
    if isinstance(curvature, type) or (curvature is not None and not hasattr(curvature, "factor")):
        raise TypeError(f"curvature must be an object such as ExactCurvature(), got {curvature!r}")
    if solver is not None and not callable(solver):
        raise TypeError(f"solver must be a function such as prunesampler.anneal, got {solver!r}")
