"""Reading a dataset to score it, without a trace in the dataset.

With workers only they touch the dataset. Without, this process reads, and undoes what that does to the
dataset: a file that it opened here would be shared with workers that training forks later, and a
random generator of its own would give the next epoch other augmentations.
"""

from __future__ import annotations

import copy
import functools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import PurePath
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate, default_convert

from prunesampler.base.checks import whole_number
from prunesampler.measure.isolation import preserved_random_state

FEW = 64
"""Longer lists and larger mappings are data, in which no file and no generator is looked for."""
PLAIN = (
    int, float, complex, str, bytes, Tensor, np.ndarray, np.generic, PurePath, random.SystemRandom,
)  # fmt: skip
GENERATORS = (
    np.random.Generator,
    np.random.BitGenerator,
    np.random.RandomState,
    torch.Generator,
    random.Random,
)
MOST_PARTS = 20_000
"""Objects of a dataset that are looked at: a graph with more is data."""


class Grid:
    """The batches of a dataset that one rank scores: every W-th of one fixed grid.

    The grid does not depend on the number of ranks W, so a batch is computed the same on any.

    Args:
        samples: indices of the samples to score, ascending: all of a dataset, or some.
        batch_size: samples per batch.
        rank: of this process.
        size: number of processes W.
    """

    def __init__(
        self, samples: Sequence[int], batch_size: int, rank: int = 0, size: int = 1
    ) -> None:
        self._samples, self._batch_size = samples, batch_size
        self._starts = range(rank * batch_size, len(samples), size * batch_size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._starts)

    def __iter__(self) -> Iterator[list[int]]:
        """Batches of ascending indices."""
        for start in self._starts:
            yield list(self._samples[start : start + self._batch_size])

    def places(self) -> torch.Tensor:
        """Where the samples of all batches stand among those to score, int64, ascending."""
        ends = [min(start + self._batch_size, len(self._samples)) for start in self._starts]
        parts = [torch.arange(*pair) for pair in zip(self._starts, ends, strict=True)]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64)


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


def copied(items: list[Any]) -> list[Any]:
    """A copy of items to work on, as far as they can be copied."""
    try:
        return copy.deepcopy(items)
    except (TypeError, ValueError, RuntimeError):  # handles and the like, which nobody takes apart
        return list(items)


def spread(size: int, count: int) -> list[int]:
    """Indices of so many samples at most, from the first to the last, ascending."""
    places = torch.linspace(0, size - 1, min(count, size), dtype=torch.float64)
    return places.round().long().unique().tolist()  # type: ignore[no-any-return, no-untyped-call]


@contextmanager
def undisturbed(reader: Any) -> Iterator[None]:
    """Inside, reading may change a dataset; outside it has opened no file and drawn no number.

    Random generators in its attributes, and in those of its parts and transforms, get their states
    back. Where a place that held None or nothing has come to hold something other than plain data,
    as a file that is opened on first use, all parts get back what they held.

    Args:
        reader: a dataset, or a function that collates.
    """
    generators, holders = _parts_of(reader)
    states = [(generator, _state(generator)) for generator in generators]
    before = [(h, list(h.items() if isinstance(h, dict) else h)) for h in holders]
    try:
        yield
    finally:
        for generator, state in states:
            _set_state(generator, state)
        if any(_opened(holder, held) for holder, held in before):
            for holder, held in before:
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(held)


def _parts_of(reader: Any) -> tuple[list[Any], list[Any]]:
    """Random generators that a reader holds, and the dicts, lists and sets in which it holds anything."""
    generators: list[Any] = []
    holders: list[Any] = []
    left: list[Any] = [reader]
    seen: dict[int, Any] = {}  # with the parts, so that no other gets the same identity
    while left and len(seen) < MOST_PARTS:
        part = left.pop()
        if id(part) in seen or isinstance(part, (*PLAIN, type, ModuleType, FunctionType)):
            continue
        seen[id(part)] = part
        if isinstance(part, GENERATORS):
            generators.append(part)
        elif isinstance(part, (list, tuple, dict, set)):
            inner = list(part.values() if isinstance(part, dict) else part)
            if len(inner) <= FEW or isinstance(inner[0], Dataset):
                holders += [part] if type(part) in (list, dict, set) else []
                left += inner
        elif isinstance(part, MethodType):
            left.append(part.__self__)
        elif _belongs(part, reader):
            if isinstance(part, functools.partial):
                left += [part.func, part.args, part.keywords]
            attributes = _attributes(part)
            if attributes is not None:
                holders.append(attributes)
                left += attributes.values()
            left += _slots(part)
    return generators, holders


def _belongs(part: Any, reader: Any) -> bool:
    """Whether an object is part of a reader, not a file or an image of some library that it holds."""
    if isinstance(part, (Dataset, SimpleNamespace)) or callable(part):
        return True
    home, own = (type(each).__module__.partition(".")[0] for each in (part, reader))
    place = getattr(sys.modules.get(type(part).__module__), "__file__", None) or ""
    library = home in sys.stdlib_module_names or "site-packages" in place
    return home in (own, "__main__") or not library


def _attributes(part: Any) -> dict[str, Any] | None:
    """What an object holds, without asking the object, whose own look-up may do anything."""
    try:
        attributes = object.__getattribute__(part, "__dict__")
    except AttributeError:
        return None
    return attributes if type(attributes) is dict else None


def _slots(part: Any) -> list[Any]:
    """What an object holds in slots."""
    found = []
    for kind in type(part).__mro__:
        for name in vars(kind).get("__slots__", ()):
            with suppress(AttributeError):
                found.append(object.__getattribute__(part, name))
    return found


def _opened(holder: Any, held: list[Any]) -> bool:
    """Whether a place that held nothing, or None, now holds something other than plain data."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(holder, dict):
        known = dict(held)
        pairs = [(known.get(key), value) for key, value in holder.items()]
    elif isinstance(holder, list):
        pairs = list(zip([*held, *[None] * len(holder)], holder, strict=False))
    plain = (*PLAIN, list, tuple, dict, set, frozenset)
    return any(old is None and not (new is None or isinstance(new, plain)) for old, new in pairs)


def _state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, np.random.BitGenerator):
        generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
