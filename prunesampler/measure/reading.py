"""Reading samples of a dataset to measure them, which leaves the dataset as it was.

If there are workers, only they touch the dataset. Otherwise this process reads, and undoes what that
does to the dataset; see `prunesampler.measure.undisturbed`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from prunesampler.base.checks import whole_number
from prunesampler.measure.isolation import preserved_random_state
from prunesampler.measure.undisturbed import undisturbed


class Grid:
    """The batches of a dataset that one rank measures: every W-th of one fixed grid.

    The grid does not depend on the number of ranks W, so a batch is the same on any number of them.

    Args:
        samples: Indices of the samples to measure, ascending: all of a dataset, or some.
        batch_size: Number of samples in a batch.
        rank: Rank of this process.
        world: Number of processes W.

    Examples:
        >>> list(Grid(range(7), batch_size=2, rank=1, world=2))
        [[2, 3], [6]]
    """

    def __init__(
        self, samples: Sequence[int], batch_size: int, rank: int = 0, world: int = 1
    ) -> None:
        self._samples, self._batch_size = samples, batch_size
        self._starts = range(rank * batch_size, len(samples), world * batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of ascending indices."""
        for start in self._starts:
            yield list(self._samples[start : start + self._batch_size])

    def places(self) -> torch.Tensor:
        """Positions of the samples of all batches among those to measure, int64, ascending."""
        ends = [min(start + self._batch_size, len(self._samples)) for start in self._starts]
        parts = [torch.arange(*pair) for pair in zip(self._starts, ends, strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are read: the settings of a ``DataLoader``, by the same names.

    Raises:
        ValueError: If the batch size is below one, or the number of workers below zero.

    Examples:
        >>> with Reading(batch_size=2).batches([10, 20, 30], Grid(range(3), 2)) as batches:
        ...     list(batches)
        [tensor([10, 20]), tensor([30])]
    """

    batch_size: int = 256
    num_workers: int = 0
    collate_fn: Callable[[list[Any]], Any] = default_collate
    pin_memory: bool = False
    multiprocessing_context: Any = None
    worker_init_fn: Callable[[int], None] | None = None

    def __post_init__(self) -> None:
        if whole_number("batch_size", self.batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        whole_number("num_workers", self.num_workers)

    @classmethod
    def like(cls, loader: DataLoader[Any]) -> Reading:
        """The settings of a loader.

        Raises:
            TypeError: If it is not a ``DataLoader``.
        """
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"like= takes a DataLoader, got {type(loader).__name__}; if it wraps one, as timm's "
                "PrefetchLoader does, give like=loader.loader"
            )
        collate = loader.collate_fn
        return cls(
            batch_size=loader.batch_size
            or getattr(loader.batch_sampler, "batch_size", None)
            or 256,
            num_workers=loader.num_workers,
            # A loader that does not batch converts single items.
            collate_fn=default_collate if collate in (None, default_convert) else collate,
            pin_memory=loader.pin_memory and torch.cuda.is_available(),
            multiprocessing_context=loader.multiprocessing_context,
            worker_init_fn=loader.worker_init_fn,
        )

    @contextmanager
    def batches(self, dataset: Dataset[Any], grid: Grid) -> Iterator[Iterator[Any]]:
        """The collated batches of a grid, read without changing the dataset or ``collate_fn``."""
        guard = nullcontext() if self.num_workers else undisturbed(dataset)
        with undisturbed(self.collate_fn), guard:
            yield iter(self._loader(dataset, grid, self.num_workers, self.collate_fn))

    def items(self, dataset: Dataset[Any], indices: Sequence[int]) -> list[Any]:
        """Single items in this order, read by one worker if there are workers."""
        guard = nullcontext() if self.num_workers else undisturbed(dataset)
        with preserved_random_state(), guard:
            (items,) = self._loader(dataset, [list(indices)], min(1, self.num_workers), list)
        return list(items)

    def _loader(
        self, dataset: Dataset[Any], batches: Any, workers: int, collate: Callable[[list[Any]], Any]
    ) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=self.pin_memory and collate is self.collate_fn,
            multiprocessing_context=self.multiprocessing_context if workers else None,
            worker_init_fn=self.worker_init_fn,
            generator=torch.Generator().manual_seed(0),
        )


def copied(items: list[Any]) -> list[Any]:
    """A copy of items to work on, or the same items if they cannot be copied.

    Examples:
        >>> items = [[1, 2]]
        >>> copied(items)[0].pop(), items
        (2, [[1, 2]])
    """
    try:
        return copy.deepcopy(items)
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # handles and the like, which no collate_fn takes apart
        return list(items)


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` indices, evenly spaced from the first sample to the last, ascending.

    Examples:
        >>> spread(101, 3)
        [0, 50, 100]
    """
    places = torch.linspace(0, size - 1, min(count, size), dtype=torch.float64)
    return sorted(set(places.round().long().tolist()))
