"""Reading a dataset to score it, without a trace in the dataset.

With workers only they touch the dataset. Without, this process reads, and undoes what that does to the
dataset: a file that it opened here would be shared with workers that training forks later, and a
random generator of its own would give the next epoch other augmentations.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import PurePath
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from prunesampler.checks import whole_number
from prunesampler.isolation import preserved_random_state

FEW = 64
"""Longer lists and larger mappings are data, in which no file and no generator is looked for."""
PLAIN = (int, float, complex, str, bytes, Tensor, np.ndarray, np.generic, PurePath)
GENERATORS = (np.random.Generator, np.random.RandomState, torch.Generator, random.Random)


class Grid:
    """The batches of a dataset that one rank scores: every W-th of one fixed grid.

    The grid does not depend on the number of ranks W, so a batch is computed the same on any.

    Args:
        num_samples: size of the dataset.
        batch_size: samples per batch.
        rank: of this process.
        size: number of processes W.
    """

    def __init__(self, num_samples: int, batch_size: int, rank: int = 0, size: int = 1) -> None:
        self._num_samples, self._batch_size = num_samples, batch_size
        self._starts = range(rank * batch_size, num_samples, size * batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of ascending indices."""
        for start in self._starts:
            yield list(range(start, min(start + self._batch_size, self._num_samples)))

    def indices(self) -> torch.Tensor:
        """All indices of all batches, int64, ascending."""
        return torch.tensor([i for batch in self for i in batch], dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How samples are read: settings of a ``DataLoader``, by its names.

    Raises:
        ValueError: for a batch size below one, or a number of workers below zero.
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
            TypeError: when it is none.
        """
        if not isinstance(loader, DataLoader):
            raise TypeError(
                f"like= takes a DataLoader, got {type(loader).__name__}; if it wraps one, as timm's "
                "PrefetchLoader does, give like=loader.loader"
            )
        return cls(
            batch_size=loader.batch_size
            or getattr(loader.batch_sampler, "batch_size", None)
            or 256,
            num_workers=loader.num_workers,
            collate_fn=default_collate if loader.collate_fn is None else loader.collate_fn,
            pin_memory=loader.pin_memory and torch.cuda.is_available(),
            multiprocessing_context=loader.multiprocessing_context,
            worker_init_fn=loader.worker_init_fn,
        )

    @contextmanager
    def batches(self, dataset: Dataset[Any], grid: Grid) -> Iterator[Iterator[Any]]:
        """The collated batches of a grid; the dataset and the global random numbers stay as they are."""
        guard = nullcontext() if self.num_workers else undisturbed(dataset)
        with undisturbed(self.collate_fn), guard:
            yield iter(self._loader(dataset, grid, self.num_workers, self.collate_fn))

    def items(self, dataset: Dataset[Any], indices: Sequence[int]) -> list[Any]:
        """Single items in this order, read by one worker if there are any."""
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


def spread(size: int, count: int) -> list[int]:
    """Indices of so many samples at most, from the first to the last, ascending."""
    places = torch.linspace(0, size - 1, min(count, size), dtype=torch.float64)
    return places.round().long().unique().tolist()  # type: ignore[no-any-return, no-untyped-call]


def some_of(dataset: Dataset[Any], count: int) -> Subset[Any]:
    """So many of a dataset's samples at most, from the first to the last."""
    return Subset(dataset, spread(len(dataset), count))  # type: ignore[arg-type]


@contextmanager
def undisturbed(reader: Any) -> Iterator[None]:
    """Inside, reading may change a dataset; outside it has opened no file and drawn no number.

    Random generators in its attributes, and in those of its transforms, get their states back. An
    object that has come to hold something other than plain data where it held None or nothing, as a
    file that is opened on first use, gets all its attributes back.

    Args:
        reader: a dataset, or a function that collates.
    """
    generators, holders = _parts_of(reader)
    states = [(g, _state(g)) for g in generators]
    before = [(holder, holder.copy()) for holder in holders]
    try:
        yield
    finally:
        for generator, state in states:
            _set_state(generator, state)
        for holder, held in before:
            if _opened(holder, held):
                holder.clear()
                (holder.update if isinstance(holder, dict) else holder.extend)(held)


def _parts_of(reader: Any) -> tuple[list[Any], list[Any]]:
    """Random generators that a reader holds, and the dicts and lists in which it holds anything."""
    generators: list[Any] = []
    holders: list[Any] = []
    left, seen = [reader], set()
    while left:
        part = left.pop()
        if id(part) in seen or isinstance(part, (*PLAIN, type, ModuleType, FunctionType)):
            continue
        seen.add(id(part))
        if isinstance(part, GENERATORS):
            generators.append(part)
        elif isinstance(part, (list, tuple, dict)):
            if len(part) <= FEW:
                holders += [] if isinstance(part, tuple) else [part]
                left += part.values() if isinstance(part, dict) else part
        elif isinstance(part, MethodType):
            left.append(part.__self__)
        else:
            if isinstance(part, functools.partial):
                left += [part.func, part.args, part.keywords]
            attributes = getattr(part, "__dict__", None)
            if isinstance(attributes, dict) and _belongs(part, reader):
                holders.append(attributes)
                left += attributes.values()
    return generators, holders


def _belongs(part: Any, reader: Any) -> bool:
    """Whether an object is part of a reader, not a file or an image of some library that it holds."""
    if isinstance(part, Dataset) or callable(part):
        return True
    homes = [type(each).__module__.partition(".")[0] for each in (part, reader)]
    return homes[0] == homes[1]


def _opened(holder: Any, held: Any) -> bool:
    """Whether a place that held nothing, or None, now holds something other than plain data."""
    if isinstance(holder, dict):
        pairs = [(held.get(key), value) for key, value in holder.items()]
    else:
        pairs = list(zip([*held, *[None] * len(holder)], holder, strict=False))
    return any(
        old is None
        and not (new is None or isinstance(new, (*PLAIN, list, tuple, dict, set, frozenset)))
        for old, new in pairs
    )


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
