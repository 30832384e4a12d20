"""Functions that inspect data loaders, and one that replaces a loader's sampler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from prunesampler.base.checks import warn
from prunesampler.sampling.sampler import InfluencePrunedSampler


def replace_sampler(loader: DataLoader[Any], sampler: InfluencePrunedSampler) -> DataLoader[Any]:
    """Copy a loader with all its settings, but with this sampler.

    Call it before ``accelerator.prepare``.

    Args:
        loader: Plain ``DataLoader`` that shuffles or reads in order.
        sampler: Sampler over the same dataset.

    Raises:
        TypeError: For a subclass of ``DataLoader``, an ``IterableDataset`` or a custom batch sampler.
        ValueError: If the loader has a sampler of its own, another dataset length, or drops its
            last batch while fewer samples are kept than a batch has.

    Examples:
        >>> sampler = InfluencePrunedSampler(range(6))
        >>> loader = replace_sampler(DataLoader(range(6), batch_size=2, shuffle=True), sampler)
        >>> sampler.restrict([0, 2, 5])
        >>> len(loader)
        2
    """
    _check_replaceable(loader)
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


def _check_replaceable(loader: DataLoader[Any]) -> None:
    """Refuse a loader with a sampler, or settings, that a copy with another sampler would lose."""
    if isinstance(getattr(loader, "dataset", None), IterableDataset):
        raise TypeError(
            f"{type(loader.dataset).__name__} is an IterableDataset, which no sampler can restrict; "
            "use a map-style dataset"
        )
    if not isinstance(loader, DataLoader):
        raise TypeError(
            f"{type(loader).__name__} is no DataLoader; if it wraps one, as timm's PrefetchLoader does, "
            "loader.loader = replace_sampler(loader.loader, sampler)"
        )
    if type(loader) is not DataLoader:
        raise TypeError(
            f"{type(loader).__name__} is a subclass of DataLoader whose settings are unknown here; "
            "build it with sampler= yourself, or replace the sampler before accelerator.prepare"
        )
    batches = type(loader.batch_sampler)
    if batches is not (type(None) if loader.batch_size is None else BatchSampler):
        raise TypeError(
            f"the loader has its own batch sampler, {batches.__name__}; build that batch sampler around "
            "an InfluencePrunedSampler yourself and pass it as batch_sampler="
        )
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


def sampler_of(loader: Any) -> Any:
    """The innermost sampler of a loader, beneath the batch samplers that frameworks put around it.

    Examples:
        >>> sampler = InfluencePrunedSampler(range(6))
        >>> sampler_of(DataLoader(range(6), batch_size=2, sampler=sampler)) is sampler
        True
    """
    link: Any = loader
    seen: list[Any] = []
    while link is not None and all(link is not other for other in seen):
        seen.append(link)
        # Shards of accelerate hold a batch sampler; infinite samplers hold a sampler.
        inner = getattr(link, "batch_sampler", None)
        link = getattr(link, "sampler", None) if inner is None else inner
    return seen[-1] if len(seen) > 1 else None


def loaders_in(nested: Any) -> list[Any]:
    """All loaders in nested lists and mappings.

    Examples:
        >>> loaders_in({"a": 1, "b": [2, (3,)]})  # anything else counts as a loader
        [1, 2, 3]
    """
    if isinstance(nested, Mapping):
        nested = list(nested.values())
    if isinstance(nested, (list, tuple)):
        return [loader for part in nested for loader in loaders_in(part)]
    return [nested]


def drops_last(loader: Any) -> bool:
    """Whether a loader, or a batch sampler in it, is set to leave out a smaller last batch.

    Examples:
        >>> drops_last(DataLoader(range(6), batch_size=4, drop_last=True))
        True
    """
    batches = getattr(loader, "batch_sampler", None)
    links = (loader, batches, getattr(batches, "sampler", None))
    return any(bool(getattr(link, "drop_last", False)) for link in links)


def batch_size_of(loader: Any) -> int | None:
    """Number of samples in a loader's batch over all processes, or None where it is unknown.

    Examples:
        >>> batch_size_of(DataLoader(range(6), batch_size=4))
        4
    """
    links = (loader, getattr(loader, "batch_sampler", None))
    names = ("total_batch_size", "batch_size")
    return next((s for n in names for link in links if (s := getattr(link, n, None))), None)


def check_batches(model: nn.Module, loader: Any, kept: int) -> None:
    """Warn when a loader's batches would be unusable in a pruned epoch.

    Args:
        model: Model as it is trained.
        loader: Training loader.
        kept: Number of samples kept in a pruned epoch.

    Raises:
        ValueError: If there would be no batch at all.

    Examples:
        >>> loader = DataLoader(range(6), batch_size=2, sampler=InfluencePrunedSampler(range(6)))
        >>> check_batches(nn.Linear(4, 3), loader, kept=4)
    """
    sampler, batch = sampler_of(loader), batch_size_of(loader)
    if not isinstance(sampler, InfluencePrunedSampler):
        warn(
            f"the loader iterates a {type(sampler).__name__}, not an InfluencePrunedSampler, so pruning "
            "would not reach it; build it with sampler=, or with replace_sampler(loader, sampler)"
        )
        return
    if batch is None:
        return
    length = sampler.length(kept)
    if length < batch and drops_last(loader):
        raise ValueError(
            f"a pruned epoch has {length} samples, fewer than a batch of {batch}, and the loader has "
            "drop_last=True: every pruned epoch would be empty; prune less, use a smaller batch, or "
            "drop_last=False"
        )
    if length < batch:
        warn(smaller_than_batch(length, batch))
    if drops_last(loader):
        return
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    if length % batch == 1 and batch > 1 and norms:
        warn(
            f"a pruned epoch has {length} samples, so in batches of {batch} the last one is of a single "
            "sample, on which batch norm cannot train; give the loader drop_last=True"
        )


def smaller_than_batch(kept: int, batch: int) -> str:
    """The warning for pruned epochs that have fewer samples than a batch.

    Examples:
        >>> smaller_than_batch(10, 16).partition(":")[0]
        'the 10 kept samples are fewer than a batch of 16'
    """
    return (
        f"the {kept} kept samples are fewer than a batch of {batch}: every pruned epoch is one "
        "short batch, one padded with copies, or none at all with drop_last; prune less or use "
        "a smaller batch"
    )
