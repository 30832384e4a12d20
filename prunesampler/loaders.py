"""Data loaders: one with another sampler, and one for scoring."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
)

from prunesampler.sampler import InfluencePrunedSampler


def replace_sampler(loader: DataLoader[Any], sampler: InfluencePrunedSampler) -> DataLoader[Any]:
    """A new loader like this one, with our sampler and every other setting kept.

    Call it before ``accelerator.prepare``.

    Args:
        loader: a plain ``DataLoader`` that shuffles or reads in order.
        sampler: over the same dataset.

    Raises:
        TypeError: for a subclass of ``DataLoader``, an ``IterableDataset`` or a custom batch sampler.
        ValueError: when the loader has a sampler of its own, another dataset length, or drops its
            last batch while fewer samples are kept than a batch has.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} is an IterableDataset, which no sampler can restrict; "
            "use a map-style dataset"
        )
    if type(loader) is not DataLoader:
        raise TypeError(
            f"{type(loader).__name__} is a subclass of DataLoader whose settings are unknown here; "
            "build it with sampler= yourself, or replace the sampler before accelerator.prepare"
        )
    if loader.batch_size is not None and type(loader.batch_sampler) is not BatchSampler:
        raise TypeError(_custom_batches(loader))
    if loader.batch_size is None and loader.batch_sampler is not None:
        raise TypeError(_custom_batches(loader))
    if type(loader.sampler) not in (RandomSampler, SequentialSampler, InfluencePrunedSampler):
        raise ValueError(
            f"the loader has its own {type(loader.sampler).__name__}, which would be lost; "
            "give the loader shuffle=True, or build a sampler that combines both"
        )
    if isinstance(loader.sampler, RandomSampler) and (
        loader.sampler.replacement or loader.sampler.num_samples != len(loader.sampler.data_source)
    ):
        raise ValueError(
            "the loader's RandomSampler draws with replacement or a number of its own, which would "
            "be lost; give the loader shuffle=True"
        )
    size = len(loader.dataset)  # type: ignore[arg-type]
    if size != sampler.num_samples:
        raise ValueError(
            f"the loader's dataset has {size} samples, the sampler's {sampler.num_samples}; "
            "build the sampler from loader.dataset"
        )
    if loader.drop_last and loader.batch_size is not None:
        sampler.require_batch(loader.batch_size)
    names = set(inspect.signature(DataLoader.__init__).parameters) - {
        "self", "sampler", "shuffle", "batch_sampler",
    }  # fmt: skip
    return DataLoader(sampler=sampler, **{name: getattr(loader, name) for name in names})


def _custom_batches(loader: DataLoader[Any]) -> str:
    return (
        f"the loader has its own batch sampler, {type(loader.batch_sampler).__name__}; build that "
        "batch sampler around an InfluencePrunedSampler yourself and pass it as batch_sampler="
    )


def sampler_of(loader: Any) -> Any:
    """The sampler at the end of a loader's chain of batch samplers, whatever prepared the loader."""
    link = getattr(loader, "batch_sampler", None)
    if link is None:
        return getattr(loader, "sampler", None)
    while hasattr(link, "batch_sampler"):  # accelerate's shards
        link = link.batch_sampler
    return getattr(link, "sampler", None)


def loaders_in(nested: Any) -> list[Any]:
    """The loaders in lists and mappings at any depth."""
    if isinstance(nested, Mapping):
        nested = list(nested.values())
    if isinstance(nested, (list, tuple)):
        return [loader for part in nested for loader in loaders_in(part)]
    return [nested]


def batch_size_of(loader: Any) -> int | None:
    """Samples of a loader's batch over all processes, as far as it tells."""
    links = (loader, getattr(loader, "batch_sampler", None))
    names = ("total_batch_size", "batch_size")
    return next((s for n in names for link in links if (s := getattr(link, n, None))), None)


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


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on the device, in tuples, lists and mappings (as dicts) at any depth."""
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def same_item(first: Any, second: Any) -> bool:
    """Whether two readings of a dataset's item are equal, as far as tensors, arrays and numbers go."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return all(same_item(first[key], second.get(key)) for key in first)
    if isinstance(first, (tuple, list)) and isinstance(second, (tuple, list)):
        return all(same_item(a, b) for a, b in zip(first, second, strict=False))
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        if not first.is_floating_point() or first.shape != second.shape:
            return torch.equal(first, second)
        return torch.allclose(first.detach(), second.detach(), rtol=0, atol=0, equal_nan=True)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=first.dtype.kind == "f")
    if isinstance(first, (int, float, str)):
        return bool(first == second) or first != first
    return True


def some_of(dataset: Dataset[Any], count: int) -> Subset[Any]:
    """So many of a dataset's samples at most, from the first to the last."""
    size = len(dataset)  # type: ignore[arg-type]
    places = torch.linspace(0, size - 1, min(count, size)).round().long()
    return Subset(dataset, places.unique().tolist())  # type: ignore[no-untyped-call]


def scoring_loader(
    dataset: Dataset[Any],
    grid: Grid,
    *,
    num_workers: int,
    collate_fn: Callable[[list[Any]], Any] | None,
) -> DataLoader[Any]:
    """A loader over the grid's batches that leaves the global random numbers alone."""
    return DataLoader(
        dataset,
        batch_sampler=grid,
        num_workers=num_workers,
        collate_fn=collate_fn,
        generator=torch.Generator().manual_seed(0),
    )
