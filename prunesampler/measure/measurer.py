"""The only loop over data: every sample of a dataset once, divided among the processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from prunesampler.base.checks import dataset_size, warn
from prunesampler.base.memory import Room
from prunesampler.base.processes import Group, together
from prunesampler.base.progress import progress_bar
from prunesampler.influence.sequences import Measured, Sequences, tokens_of
from prunesampler.measure.batches import to_device
from prunesampler.measure.filling import Filling
from prunesampler.measure.gradients import GradientSource, HeadGradients, check_gradient
from prunesampler.measure.heads import Losses, find_head
from prunesampler.measure.isolation import fingerprint, model_device, untouched
from prunesampler.measure.probing import explained
from prunesampler.measure.reading import Grid, Reading, copied, spread
from prunesampler.measure.tokens import Keep

COUPLED = 0.05
"""Largest relative change of a layer's input that the other samples of a batch may cause."""


class Measurer:
    """Measures all samples of datasets with a model, and leaves both as they were.

    Args:
        head: The layer to measure, its name, or None to find it.
        losses: One loss per sample.
        gradients: Measures a batch in place of ``head`` and ``losses``, or None.
        reading: How samples are read.
        progress: Whether to show a progress bar.
        keep: What is kept of a batch's measurements; by default everything.
        announce: Told what is kept of each batch.
        room: Where the measurements are put; by default in memory.

    Attributes:
        layer: Name of the layer that was measured last, or None if unknown.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> from prunesampler import SquaredError
        >>> from prunesampler.base.processes import LocalGroup
        >>> measurer = Measurer(
        ...     head=None, losses=SquaredError(), gradients=None, reading=Reading(), progress=False
        ... )
        >>> dataset = TensorDataset(torch.randn(5, 2), torch.randn(5))
        >>> (measured,) = measurer.measure(nn.Linear(2, 1), [dataset], LocalGroup())
        >>> measured.inputs.shape  # two inputs and the one for the bias
        torch.Size([5, 3])
    """

    def __init__(
        self,
        *,
        head: nn.Module | str | None,
        losses: Losses,
        gradients: GradientSource | None,
        reading: Reading,
        progress: bool,
        keep: Keep = lambda measured: measured,
        announce: Callable[[Measured], None] = lambda measured: None,
        room: Room | None = None,
    ) -> None:
        self._keep, self._announce, self._room = keep, announce, room or Room()
        self._head, self._losses, self._gradients = head, losses, gradients
        self.reading, self.progress = reading, progress
        self.layer: str | None = None
        self._checked = False

    def measure(
        self,
        model: nn.Module,
        datasets: Sequence[Dataset[Any]],
        group: Group,
        *,
        trial: bool = False,
    ) -> list[Measured | None]:
        """Measurements of all samples of each dataset, in its order, on rank 0; None elsewhere.

        Args:
            model: The model, without wrappers.
            datasets: Map-style datasets.
            group: The processes that divide the work; all of them call this.
            trial: Measure only one batch per process of each dataset, and accept losses and
                gradients that are not finite.

        Raises:
            ValueError: If anything in the data or the model makes the gradients meaningless.
            RuntimeError: If another rank failed.
        """
        chosen = [self._samples(dataset, group, trial) for dataset in datasets]
        device = together(group, lambda: model_device(model))
        if group.world > 1:
            group.check_equal("the models", together(group, lambda: fingerprint(model)))
        with untouched(model, group.broadcast):
            parts = together(
                group,
                lambda: [
                    self._part(model, device, group, dataset, samples, trial)
                    for dataset, samples in zip(datasets, chosen, strict=True)
                ],
            )
        signature = repr([part.signature() for part in parts]).encode()
        group.check_equal("the measurements", signature)
        return [
            self._gather(part, group, samples) for part, samples in zip(parts, chosen, strict=True)
        ]

    def _samples(self, dataset: Dataset[Any], group: Group, trial: bool) -> Sequence[int]:
        """Indices of the samples to measure, ascending: all, or one batch per process."""
        size = dataset_size(dataset)
        return spread(size, self.reading.batch_size * group.world) if trial else range(size)

    def _part(
        self,
        model: nn.Module,
        device: torch.device,
        group: Group,
        dataset: Dataset[Any],
        samples: Sequence[int],
        trial: bool,
    ) -> Measured:
        """Measurements of this rank's part of the samples, on the CPU, in ascending order."""
        with explained():
            source = self._source(model, device, dataset)
            grid = Grid(samples, self.reading.batch_size, group.rank, group.world)
            total, shown = len(grid.places()), self.progress and group.rank == 0
            filling = Filling(total, self._room)
            with (
                self.reading.batches(dataset, grid) as batches,
                progress_bar("measuring", total, shown) as bar,
            ):
                for indices, batch in zip(grid, batches, strict=True):
                    measured = self._kept(source(model, to_device(batch, device)))
                    _check_measured(measured, indices, finite=not trial)
                    filling.add(measured)
                    bar.update(len(indices))
            if not total:  # more ranks than batches: the shapes are still needed
                items = self.reading.items(dataset, samples[: self.reading.batch_size])
                return self._kept(source(model, self._batch(items, device)))[:0]
        return filling.measurements()

    def _kept(self, measured: Measured) -> Measured:
        """What is kept of a batch's measurements, on the CPU."""
        kept = self._keep(measured).map(Tensor.cpu)
        self._announce(kept)
        return kept

    def _batch(self, items: list[Any], device: torch.device) -> Any:
        # A copy, since a collate function may change its items.
        return to_device(self.reading.collate_fn(copied(items)), device)

    def _gather(self, mine: Measured, group: Group, samples: Sequence[int]) -> Measured | None:
        """Measurements of all samples in dataset order on rank 0, None elsewhere."""
        if group.world == 1:
            return mine.over_tokens() if isinstance(mine, Sequences) else mine
        places = [
            Grid(samples, self.reading.batch_size, rank, group.world).places()
            for rank in range(group.world)
        ]

        def gather(places: list[Tensor], tensor: Tensor) -> Tensor:
            """The tensor of all ranks on rank 0, an empty one elsewhere."""
            everyone = group.gather(tensor, places, self._room)
            return tensor[:0] if everyone is None else everyone

        if not isinstance(mine, Sequences):
            everyone = mine.map(partial(gather, places))
            return everyone if group.rank == 0 else None
        counts = gather(places, mine.counts)
        places = places if group.rank else [tokens_of(counts, place) for place in places]
        tokens = mine.tokens.map(partial(gather, places))
        return None if group.rank else Sequences(tokens, counts).over_tokens()

    def _source(
        self, model: nn.Module, device: torch.device, dataset: Dataset[Any]
    ) -> GradientSource:
        """What measures a batch: ``gradients``, or the layer that is given or found, once checked."""
        if self._gradients is not None:
            self.layer = _name_of(model, getattr(self._gradients, "head", None))
            return self._gradients
        if self._head is not None and self._checked:
            return HeadGradients(self._head, self._losses, self._keep)
        items = self.reading.items(dataset, range(min(3, dataset_size(dataset))))
        head = self._found(model, device, items[:2]) if self._head is None else self._head
        self.layer = _name_of(model, head)
        source = HeadGradients(head, self._losses, self._keep)
        if not self._checked:
            check_gradient(source, model, self._batch(items[:2], device))
            if len(items) == 3:
                self._check_uncoupled(source, model, device, items)
        self._checked = True
        return source

    def _found(self, model: nn.Module, device: torch.device, items: list[Any]) -> str:
        """Name of the last linear layer that runs; warns once if it leaves out trained parameters."""
        found = find_head(model, self._batch(items, device), self._losses, len(items))
        if found.beside and not self._checked:
            more = " and more" if len(found.beside) > 3 else ""
            warn(
                f"layer {found.name!r} is measured, but the trained parameters "
                f"{', '.join(found.beside[:3])}{more} lie between it and the loss, or on a way "
                "around it: their own shift is not predicted; choose the layer with head= if the "
                "classifier is another one"
            )
        return found.name

    def _check_uncoupled(
        self, source: GradientSource, model: nn.Module, device: torch.device, items: list[Any]
    ) -> None:
        """Warn if a sample's input to the layer depends on the other samples in its batch."""
        pairs = [[items[0], items[other]] for other in (1, 2)]
        first, second = (
            source(model, self._batch(pair, device))[:1].tokens.inputs for pair in pairs
        )
        if first.shape == second.shape and (first - second).norm() > COUPLED * first.norm():
            warn(
                "what the model makes of a sample depends on the other samples in its batch (batch "
                "norm without running statistics, or padding that is not masked), so scores depend on "
                "batch_size=; use running statistics, a padding mask or a fixed length"
            )


def _name_of(model: nn.Module, head: nn.Module | str | None) -> str | None:
    """Name of a layer in the model, or None if it is not there."""
    if head is None or isinstance(head, str):
        return head
    return next((name for name, module in model.named_modules() if module is head), None)


def _check_measured(part: Measured, indices: list[int], *, finite: bool) -> None:
    """Check that a batch's measurements are one per sample, and finite; the error names samples."""
    if len(part) != len(indices):
        raise ValueError(
            f"a batch of {len(indices)} samples gave {len(part)} gradients; the model must return "
            "one output per sample"
        )
    good = part.finite()
    if finite and not good.all():
        bad = [index for index, fine in zip(indices, good.tolist(), strict=True) if not fine]
        raise ValueError(
            f"loss or gradient is not finite for samples {bad[:5]}{' and more' * (len(bad) > 5)}; "
            "look at these samples, or at the learning rate if it is many"
        )
