"""Checks of what users pass in, shared by the classes they pass it to."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

SEEDS = 2**64
"""Number of valid seeds: the generators of the solvers and of torch take 64 bits."""


def warn(message: str) -> None:
    """Warn at the line outside this package that called it, which is the one the user can change.

    Examples:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("the learning rate ends early")
        >>> str(caught[0].message)
        'the learning rate ends early'
    """
    frame, level = sys._getframe(), 1
    # With the separator, since a user's folder prunesampler_project beside the package is outside.
    package = os.path.dirname(os.path.dirname(__file__)) + os.sep
    while frame.f_back and (
        frame.f_code.co_filename.startswith(package) or frame.f_code.co_filename == "<string>"
    ):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def dataset_size(dataset: Any) -> int:
    """Number of samples of a map-style dataset.

    Raises:
        TypeError: If it is anything else, such as an iterable dataset or a loader.
        ValueError: If it is empty.

    Examples:
        >>> dataset_size(["a", "b", "c"])
        3
    """
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not indexed:
        raise TypeError(
            f"{type(dataset).__name__} is not a map-style dataset (with __len__ and __getitem__), so "
            "it has no indices to choose from; pass the dataset itself, not a loader or a stream"
        )
    if len(dataset) == 0:
        raise ValueError(f"the {type(dataset).__name__} is empty; there is nothing to choose from")
    return len(dataset)


def whole_number(name: str, value: Any) -> int:
    """The value as an int.

    Raises:
        ValueError: If it is not a whole number of at least 0.

    Examples:
        >>> whole_number("warmup_epochs", 2.5)
        Traceback (most recent call last):
        ValueError: warmup_epochs must be a whole number of at least 0, got 2.5
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {value!r}")
    return int(value)


def checked_seed(seed: Any, name: str = "seed") -> int:
    """The seed as an int that every generator of this package takes.

    Raises:
        ValueError: If it is not a whole number from 0 to ``2**64 - 1``.

    Examples:
        >>> checked_seed(np.int64(7))
        7
    """
    number = whole_number(name, seed)
    if number >= SEEDS:
        raise ValueError(
            f"{name} must be a whole number from 0 to 2**64 - 1, got {number}; take it modulo 2**64"
        )
    return number


def checked_indices(
    indices: Tensor | Sequence[int], num_samples: int, name: str = "kept indices"
) -> Tensor:
    """Indices as an ascending int64 tensor on the CPU.

    Raises:
        TypeError: If they are not whole numbers.
        ValueError: If one is out of range or given twice.

    Examples:
        >>> checked_indices([4, 0, 2], num_samples=5)
        tensor([0, 2, 4])
    """
    try:
        tensor = torch.as_tensor(indices if hasattr(indices, "__array__") else list(indices))
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be whole numbers, got {indices!r}") from error
    if tensor.numel() == 0:
        return torch.zeros(0, dtype=torch.int64)
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise TypeError(
            f"{name} must be whole numbers of shape (k,), got {tensor.dtype} of shape "
            f"{tuple(tensor.shape)}; turn a mask into indices with mask.nonzero().flatten()"
        )
    given = tensor.to("cpu", torch.int64)
    first, last = int(given.min()), int(given.max())
    if first < 0 or last >= num_samples:
        raise ValueError(
            f"{name} run from {first} to {last}, but the dataset has indices 0 to {num_samples - 1}"
        )
    chosen = torch.zeros(num_samples, dtype=torch.bool)
    chosen[given] = True
    ascending = chosen.nonzero().flatten()  # ascending without sorting, and a copy of our own
    if len(ascending) < len(given):
        repeated = int((given.bincount() > 1).nonzero()[0])
        raise ValueError(f"{name} hold {repeated} more than once; give each index once")
    return ascending


def checked_labels(labels: Tensor | Sequence[int], num_samples: int) -> Tensor:
    """Labels as an int64 tensor on the CPU, shape (n,).

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there is not one whole number of at least 0 per sample.

    Examples:
        >>> checked_labels([0, 2, 1], num_samples=3)
        tensor([0, 2, 1])
    """
    try:
        tensor = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "labels must be whole numbers, one per sample: number the classes"
        ) from error
    wanted = f"labels must be {num_samples} whole numbers from 0, one per sample"
    if tensor.shape != (num_samples,) or tensor.is_floating_point():
        raise ValueError(f"{wanted}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
    whole = tensor.to("cpu", torch.int64)
    negative = (whole < 0).nonzero().flatten()
    if len(negative):
        raise ValueError(
            f"{wanted}, got {int(whole[negative[0]])} for sample {int(negative[0])} and "
            f"{len(negative)} below 0 in all; give such samples a class of their own, or leave them "
            "out of the dataset"
        )
    return whole


def checked_cost(cost: Tensor | Sequence[float], num_samples: int) -> Tensor:
    """Costs as a float64 tensor on the CPU, shape (n,).

    Raises:
        TypeError: If they are not numbers.
        ValueError: If there is not one finite number per sample.

    Examples:
        >>> checked_cost([1, 2], num_samples=2)
        tensor([1., 2.], dtype=torch.float64)
    """
    try:
        tensor = torch.as_tensor(cost).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError("cost must be numbers, one per sample") from error
    if tensor.shape != (num_samples,):
        raise ValueError(
            f"cost must be {num_samples} numbers, one per sample, got shape {tuple(tensor.shape)}"
        )
    bad = (~tensor.isfinite()).nonzero().flatten()
    if len(bad):
        raise ValueError(
            f"cost is not finite for {len(bad)} samples, the first is sample {int(bad[0])} with "
            f"{float(tensor[bad[0]])}; give every sample a finite cost"
        )
    return tensor


def check_state(state: Mapping[str, Any], owner: str, version: int, keys: set[str]) -> None:
    """Check that a state dict has all keys and this version.

    Raises:
        ValueError: If a key is missing, or the version is different.

    Examples:
        >>> check_state({"version": 1}, "Sampler", 1, {"version", "epoch"})
        Traceback (most recent call last):
        ValueError: not a state of Sampler: ['epoch'] missing; load what its state_dict returned
    """
    missing = keys - set(state)
    if missing:
        raise ValueError(
            f"not a state of {owner}: {sorted(missing)} missing; load what its state_dict returned"
        )
    if state["version"] != version:
        raise ValueError(
            f"the state of {owner} has version {state['version']!r}, this release reads {version}; "
            "resume with the release that saved it"
        )
