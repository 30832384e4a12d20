"""The only loop over data: every sample of a dataset once, shared out over the processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from prunesampler.checks import dataset_size, warn
from prunesampler.distributed import Group, together
from prunesampler.gradients import GradientSource, HeadGradients, Losses, find_head
from prunesampler.guarantee import Progress
from prunesampler.isolation import fingerprint, model_device, untouched
from prunesampler.loaders import Grid, same_item, scoring_loader, to_device
from prunesampler.samples import SampleGradients


class Measurer:
    """Takes the gradients of datasets' samples with a model, and leaves no trace.

    Args:
        head: the layer to score, its name, or None to find it.
        losses: one loss per sample.
        gradients: measures a batch in place of head and losses, or None.
        batch_size: samples per forward pass.
        num_workers: of the scoring loader.
        collate_fn: of the scoring loader.
        progress: show a progress bar.
    """

    def __init__(
        self,
        *,
        head: nn.Linear | str | None,
        losses: Losses,
        gradients: GradientSource | None,
        batch_size: int,
        num_workers: int,
        collate_fn: Callable[[list[Any]], Any],
        progress: bool,
    ) -> None:
        self._head, self._losses, self._gradients = head, losses, gradients
        self._batch_size, self._num_workers = batch_size, num_workers
        self._collate_fn, self.progress = collate_fn, progress
        self._checked = False

    def measure(
        self,
        model: nn.Module,
        datasets: Sequence[Dataset[Any]],
        group: Group,
        *,
        trial: bool = False,
    ) -> list[SampleGradients | None]:
        """Measurements of all samples of each dataset, in its order, on rank 0; None elsewhere.

        Args:
            model: without wrappers.
            datasets: map-style.
            group: the processes that share the work; all of them call this.
            trial: let losses and gradients pass that are not finite.

        Raises:
            ValueError: for anything about data or model that makes the gradients meaningless.
            RuntimeError: when another rank failed.
        """
        device = together(group, lambda: model_device(model))
        if group.size > 1:
            group.check_equal("the models", together(group, lambda: fingerprint(model)))
        with untouched(model, group.broadcast):
            shares = together(
                group, lambda: [self._share(model, device, group, data, trial) for data in datasets]
            )
        signature = repr([share.signature() for share in shares]).encode()
        group.check_equal("the measurements", signature)
        return [
            self._gather(share, group, dataset_size(dataset))
            for share, dataset in zip(shares, datasets, strict=True)
        ]

    def _share(
        self,
        model: nn.Module,
        device: torch.device,
        group: Group,
        dataset: Dataset[Any],
        trial: bool,
    ) -> SampleGradients:
        """This rank's share of the samples, on the CPU, in ascending order."""
        if not self._checked:
            self._checked = True
            _check_repeatable(dataset)
        source = self._gradients or HeadGradients(
            self._find_head(model, device, dataset), self._losses
        )
        grid = Grid(dataset_size(dataset), self._batch_size, group.rank, group.size)
        loader = scoring_loader(
            dataset, grid, num_workers=self._num_workers, collate_fn=self._collate_fn
        )
        parts: list[SampleGradients] = []
        total = len(grid.indices())
        shown = self.progress and group.rank == 0
        with progress_bar("scoring", total, shown) as bar, explained():
            for indices, batch in zip(grid, loader, strict=True):
                part = source(model, to_device(batch, device)).map(lambda t: t[0].cpu())
                _check_measured(part, indices, finite=not trial)
                parts.append(part)
                bar.update(len(indices))
        if not parts:  # more ranks than batches: the shapes are needed all the same
            first = range(min(self._batch_size, dataset_size(dataset)))
            batch = to_device(self._collate_fn([dataset[index] for index in first]), device)
            parts = [source(model, batch).map(lambda t: t[0][:0].cpu())]
        return SampleGradients.cat(parts)

    def _gather(
        self, mine: SampleGradients, group: Group, num_samples: int
    ) -> SampleGradients | None:
        """All samples in dataset order on rank 0, None elsewhere."""
        if group.size == 1:
            return mine
        places = [
            Grid(num_samples, self._batch_size, rank, group.size).indices()
            for rank in range(group.size)
        ]
        order = torch.cat(places).argsort()
        sizes = [len(place) for place in places]

        def collect(tensors: list[Tensor]) -> Tensor:
            parts = group.gather(tensors[0], sizes)
            return tensors[0] if parts is None else torch.cat(parts)[order]

        everyone = mine.map(collect)
        return everyone if group.rank == 0 else None

    def _find_head(
        self, model: nn.Module, device: torch.device, dataset: Dataset[Any]
    ) -> nn.Linear | str:
        if self._head is not None:
            return self._head
        batch = self._collate_fn([dataset[i] for i in range(min(2, len(dataset)))])  # type: ignore[arg-type]
        return find_head(model, to_device(batch, device), self._losses)


@contextmanager
def explained() -> Iterator[None]:
    """Say of errors inside where they happened, as far as Python can (from 3.11 on)."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                "This happened while prunesampler scored a batch of score_dataset, put together by "
                "collate_fn= (default: torch's), with losses= (default: cross-entropy); give the "
                "pruner what your training loader has."
            )
        raise


def progress_bar(name: str, total: int, shown: bool) -> tqdm[Any]:
    """A bar on standard error that leaves no line behind."""
    return tqdm(total=total, desc=name, disable=not shown, leave=False, file=sys.stderr)


def advance(bar: tqdm[Any]) -> Progress:
    """A function that moves a bar to the steps done."""

    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def _check_repeatable(dataset: Dataset[Any]) -> None:
    """Warn when reading an item twice gives two things: then the scores are of one draw."""
    size = dataset_size(dataset)
    for index in {0, size // 2, size - 1}:
        if not same_item(dataset[index], dataset[index]):
            warn(
                f"score_dataset gives another item {index} each time it is read; scores would "
                "be of one random augmentation: give it the evaluation transform"
            )
            return


def _check_measured(part: SampleGradients, indices: list[int], *, finite: bool) -> None:
    """Check a batch's measurements, naming samples."""
    if len(part) != len(indices):
        raise ValueError(
            f"a batch of {len(indices)} samples gave {len(part)} gradients; the model must return "
            "one output per sample"
        )
    good = part.losses.isfinite() & part.delta.isfinite().all(1) & part.inputs.isfinite().all(1)
    if finite and not good.all():
        bad = [index for index, fine in zip(indices, good.tolist(), strict=True) if not fine]
        raise ValueError(
            f"loss or gradient is not finite for samples {bad[:5]}{' and more' * (len(bad) > 5)}; "
            "look at these samples, or at the learning rate if it is many"
        )
