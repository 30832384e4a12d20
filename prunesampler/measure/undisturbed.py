"""Reading that leaves a dataset as it was.

A file that is opened on first use would be shared with workers that training forks later, and a random
generator that was used would give the next epoch other augmentations.
"""

from __future__ import annotations

import functools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePath
from types import FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

LARGEST_HOLDER = 64
"""A longer list or larger mapping is data, and is not searched for files and generators."""
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
"""Largest number of objects in a dataset to look at: beyond that they are data."""


@contextmanager
def undisturbed(reader: Any) -> Iterator[None]:
    """Undo at the end what reading does to a dataset: the files it opens and the numbers it draws.

    Random generators in its attributes, and in those of its parts and transforms, get their states
    back. If an attribute that was None or missing has come to hold something other than plain data,
    such as a file that is opened on first use, all parts get back what they held.

    Args:
        reader: A dataset or a collate function.

    Examples:
        >>> dataset = SimpleNamespace(file=None, random=random.Random(0))
        >>> with undisturbed(dataset):
        ...     dataset.file, number = sys.stdin, dataset.random.random()
        >>> dataset.file is None, dataset.random.random() == number
        (True, True)
    """
    generators, holders = _parts_of(reader)
    restorers = [_restorer(generator) for generator in generators]
    before = [(h, list(h.items() if isinstance(h, dict) else h)) for h in holders]
    try:
        yield
    finally:
        for restore in restorers:
            restore()
        if any(_opened(holder, held) for holder, held in before):
            for holder, held in before:
                holder.clear()
                (holder.extend if isinstance(holder, list) else holder.update)(held)


def _parts_of(reader: Any) -> tuple[list[Any], list[Any]]:
    """Random generators that a reader holds, and the dicts, lists and sets that hold its parts."""
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
            if len(inner) <= LARGEST_HOLDER or isinstance(inner[0], Dataset):
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
    """Whether an object is part of a reader, and not some library's file or image that it holds."""
    if isinstance(part, (Dataset, SimpleNamespace)) or callable(part):
        return True
    home, own = (type(each).__module__.partition(".")[0] for each in (part, reader))
    place = getattr(sys.modules.get(type(part).__module__), "__file__", None) or ""
    library = home in sys.stdlib_module_names or "site-packages" in place
    return home in (own, "__main__") or not library


def _attributes(part: Any) -> dict[str, Any] | None:
    """The attributes of an object, without calling its own look-up, which may do anything."""
    try:
        attributes = object.__getattribute__(part, "__dict__")
    except AttributeError:
        return None
    return attributes if type(attributes) is dict else None


def _slots(part: Any) -> list[Any]:
    """The values in the slots of an object."""
    found = []
    for kind in type(part).__mro__:
        for name in vars(kind).get("__slots__", ()):
            with suppress(AttributeError):
                found.append(object.__getattribute__(part, name))
    return found


def _opened(holder: Any, held: list[Any]) -> bool:
    """Whether an entry that was missing or None now holds something other than plain data."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(holder, dict):
        known = dict(held)
        pairs = [(known.get(key), value) for key, value in holder.items()]
    elif isinstance(holder, list):
        pairs = list(zip([*held, *[None] * len(holder)], holder, strict=False))
    plain = (*PLAIN, list, tuple, dict, set, frozenset)
    return any(old is None and not (new is None or isinstance(new, plain)) for old, new in pairs)


def _restorer(generator: Any) -> Callable[[], None]:
    """A function that gives a generator back the state that it has now."""
    if isinstance(generator, np.random.Generator):
        generator = generator.bit_generator
    if isinstance(generator, np.random.BitGenerator):
        return functools.partial(setattr, generator, "state", generator.state)
    if isinstance(generator, random.Random):
        return functools.partial(generator.setstate, generator.getstate())
    return functools.partial(generator.set_state, generator.get_state())
