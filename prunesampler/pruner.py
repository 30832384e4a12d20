"""From a model and a dataset to a selection: the only loop over data, the only collectives."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate
from tqdm.auto import tqdm

from prunesampler.annealing import anneal
from prunesampler.certificate import convex_bound, newton_shift, random_shift
from prunesampler.checks import checked_labels, dataset_size, whole_number
from prunesampler.curvature import Curvature, ExactCurvature
from prunesampler.distributed import Group, current_group, together
from prunesampler.gradients import GradientSource, HeadGradients, Losses, find_head
from prunesampler.influence import Influence
from prunesampler.isolation import fingerprint, model_device, untouched, unwrap
from prunesampler.loaders import Grid, same_item, scoring_loader, to_device
from prunesampler.losses import CrossEntropy
from prunesampler.samples import SampleGradients
from prunesampler.selection import Budget, Selection, complement
from prunesampler.solvers import Progress, Solver


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
    ) -> None:
        self.num_samples = dataset_size(score_dataset)
        if gradients is not None and (head is not None or losses is not None):
            raise ValueError("gradients= replaces head= and losses=; give one or the other")
        if whole_number("batch_size", batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        _check_objects(budget, losses, curvature, solver)
        budget.size(self.num_samples)
        self.budget = budget
        self._labels = None if labels is None else checked_labels(labels, self.num_samples)
        self._dataset, self._head, self._gradients = score_dataset, head, gradients
        self._losses: Losses = CrossEntropy() if losses is None else losses
        self._curvature: Curvature = ExactCurvature() if curvature is None else curvature
        self._solver: Solver = anneal if solver is None else solver
        self._batch_size, self._num_workers = batch_size, num_workers
        self._collate_fn = default_collate if collate_fn is None else collate_fn
        self.progress, self._seed, self._center = progress, whole_number("seed", seed), center
        self._checked = False

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
        group = current_group()
        model = unwrap(model)
        started = time.perf_counter()
        device = together(group, lambda: model_device(model))
        if group.size > 1:
            group.check_equal("the models", together(group, lambda: fingerprint(model)))
        group.check_equal("the pruners", repr(self._settings()).encode())
        with untouched(model, group.broadcast):
            mine = together(group, lambda: self._measure(model, device, group))
        group.check_equal("the measurements", repr(mine.signature()).encode())
        everyone = self._gather(mine, group)
        seconds = time.perf_counter() - started
        data = together(
            group, lambda: None if everyone is None else self._solve(everyone, seconds).to_bytes()
        )
        selection = Selection.from_bytes(group.broadcast_bytes(data))
        group.check_equal("the kept sets", selection.kept.numpy().tobytes())
        return selection

    def _settings(self) -> tuple[object, ...]:
        """What must be the same on all ranks."""
        return self.num_samples, self._batch_size, self._seed, self.budget

    def _measure(self, model: nn.Module, device: torch.device, group: Group) -> SampleGradients:
        """This rank's share of the samples, on the CPU, in ascending order."""
        self._check_dataset()
        source = self._gradients or HeadGradients(self._find_head(model, device), self._losses)
        grid = Grid(self.num_samples, self._batch_size, group.rank, group.size)
        loader = scoring_loader(
            self._dataset, grid, num_workers=self._num_workers, collate_fn=self._collate_fn
        )
        parts: list[SampleGradients] = []
        with self._bar("scoring", len(grid.indices()), group.rank) as bar:
            for indices, batch in zip(grid, loader, strict=True):
                part = source(model, to_device(batch, device)).map(lambda t: t[0].cpu())
                _check_measured(part, indices)
                parts.append(part)
                bar.update(len(indices))
        if not parts:  # more ranks than batches: the shapes are needed all the same
            batch = to_device(self._collate_fn([self._dataset[0]]), device)
            parts = [source(model, batch).map(lambda t: t[0][:0].cpu())]
        return SampleGradients.cat(parts)

    def _gather(self, mine: SampleGradients, group: Group) -> SampleGradients | None:
        """All samples in dataset order on rank 0, None elsewhere."""
        if group.size == 1:
            return mine
        places = [
            Grid(self.num_samples, self._batch_size, rank, group.size).indices()
            for rank in range(group.size)
        ]
        order = torch.cat(places).argsort()
        sizes = [len(place) for place in places]

        def collect(tensors: list[Tensor]) -> Tensor:
            parts = group.gather(tensors[0], sizes)
            return tensors[0] if parts is None else torch.cat(parts)[order]

        everyone = mine.map(collect)
        return everyone if group.rank == 0 else None

    def _find_head(self, model: nn.Module, device: torch.device) -> nn.Linear | str:
        if self._head is not None:
            return self._head
        batch = self._collate_fn([self._dataset[i] for i in range(min(2, self.num_samples))])
        return find_head(model, to_device(batch, device), self._losses)

    def _solve(self, gradients: SampleGradients, scoring_seconds: float) -> Selection:
        """The selection from the measurements, on one process."""
        labels = gradients.labels if self._labels is None else self._labels
        if labels is not None:
            classes, labels = labels.unique(return_inverse=True)  # type: ignore[no-untyped-call]
            if len(classes) == 1:
                raise ValueError(
                    f"all {self.num_samples} samples have label {int(classes[0])}: with one class "
                    "there is nothing to tell apart; check the labels"
                )
        started = time.perf_counter()
        factor = self._curvature.factor(gradients)
        influence = Influence.build(gradients.rows(), factor, center=self._center)
        factored = time.perf_counter()
        with self._bar("solving", 1, 0) as bar:
            solution = self._solver(
                influence, self.budget, labels=labels, seed=self._seed, progress=_progress(bar)
            )
        solved = time.perf_counter()
        pruned, kept = solution.pruned, complement(solution.pruned, self.num_samples)
        step = newton_shift(gradients[kept], influence, self._curvature, pruned)
        # Only a damping that was given is the penalty in use; the default one proves nothing.
        penalty = getattr(self._curvature, "damping", None) if self._center else None
        bound = convex_bound(influence, pruned, penalty) if penalty else None
        random = random_shift(influence, len(pruned), self._seed)
        return Selection(
            pruned=pruned,
            num_samples=self.num_samples,
            shift=float(solution.norm),
            newton_shift=float(step.norm()),
            bound=bound,
            budget=self.budget,
            metadata={
                "scoring_seconds": scoring_seconds,
                "curvature_seconds": factored - started,
                "solving_seconds": solved - factored,
                "certificate_seconds": time.perf_counter() - solved,
                "curvature": type(self._curvature).__name__,
                "damping": factor.damping,
                "parameters": math.prod(influence.gradients.shape),
                "random_shift": random,
                "mean_loss": float(gradients.losses.mean()),
            },
        )

    def _check_dataset(self) -> None:
        """Warn when reading an item twice gives two things: then the scores are of one draw."""
        if self._checked:
            return
        self._checked = True
        for index in {0, self.num_samples // 2, self.num_samples - 1}:
            first, second = self._dataset[index], self._dataset[index]
            if not same_item(first, second):
                warnings.warn(
                    f"score_dataset gives another item {index} each time it is read; scores would "
                    "be of one random augmentation: give it the evaluation transform",
                    stacklevel=6,
                )
                return

    def _bar(self, name: str, total: int, rank: int) -> tqdm[Any]:
        silent = not self.progress or rank != 0
        return tqdm(total=total, desc=name, disable=silent, leave=False, file=sys.stderr)


def _progress(bar: tqdm[Any]) -> Progress:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


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


def _check_measured(part: SampleGradients, indices: list[int]) -> None:
    """Check a batch's measurements, naming samples."""
    if len(part) != len(indices):
        raise ValueError(
            f"a batch of {len(indices)} samples gave {len(part)} gradients; the model must return "
            "one output per sample"
        )
    finite = part.losses.isfinite() & part.delta.isfinite().all(1) & part.inputs.isfinite().all(1)
    if not finite.all():
        bad = [index for index, good in zip(indices, finite.tolist(), strict=True) if not good]
        raise ValueError(
            f"loss or gradient is not finite for samples {bad[:5]}{' and more' * (len(bad) > 5)}; "
            "look at these samples, or at the learning rate if it is many"
        )
