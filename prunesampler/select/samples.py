"""What pages show of a dataset's samples and classes; the dataset is left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from prunesampler.measure.isolation import preserved_random_state
from prunesampler.measure.undisturbed import undisturbed
from prunesampler.page.pictures import Picture, picture
from prunesampler.page.texts import short

LABELS = ("label", "labels", "target", "targets", "y")
"""Names under which a mapping holds the label of a sample."""
NESTED = 16
"""Subsets within each other, at most, since one could hold itself."""


@dataclass(frozen=True)
class Sample:
    """A sample as a page shows it.

    Args:
        index: Its place in the dataset.
        picture: What is shown of it.
        label: Its class if the dataset tells one, else None.

    Examples:
        >>> Sample(3, Picture("a text"), 1).label
        1
    """

    index: int
    picture: Picture
    label: int | None


def check_length(dataset: Any, num_samples: int, what: str) -> None:
    """Check that a dataset is as long as what is reported of it; None is no dataset, and fine.

    Args:
        dataset: The dataset, or None.
        num_samples: Number of samples that it should have.
        what: What the report is of, for the message.

    Raises:
        ValueError: If it has another length, or none.

    Examples:
        >>> check_length([1, 2], 3, "selection")
        Traceback (most recent call last):
        ValueError: the dataset has 2 samples and the selection is of 3; give the dataset that was measured
    """
    if dataset is None:
        return
    try:
        length = len(dataset)
    except TypeError as error:
        raise ValueError(
            f"the dataset ({type(dataset).__name__}) has no length, and the {what} is of {num_samples} samples; "
            "give a dataset with len() and indices, the one that was measured"
        ) from error
    if length != num_samples:
        raise ValueError(
            f"the dataset has {length} samples and the {what} is of {num_samples}; give the dataset that was measured"
        )


def read_samples(dataset: Any, indices: Sequence[int]) -> dict[int, Sample]:
    """Read some samples to show them; one that cannot be read says why.

    Args:
        dataset: Any dataset with indices, which is left as it was.
        indices: Which samples.

    Examples:
        >>> read_samples([("a text", 3)], [0, 1])[0].label
        3
    """
    chosen = list(dict.fromkeys(indices))
    if isinstance(dataset, InWorker):
        return {sample.index: sample for sample in dataset.read(chosen)}
    with preserved_random_state(), undisturbed(dataset):
        return {index: _read(dataset, index) for index in chosen}


def _read(dataset: Any, index: int) -> Sample:
    """A sample, or why it could not be read."""
    try:
        item = dataset[index]
        return Sample(index, picture(item), _label(item))
    except Exception as error:  # in the user's code: anything
        said = f"could not be read: {short(repr(error), 160)}"
        return Sample(index, Picture(said), None)


class InWorker(Dataset[Sample]):
    """A dataset of which another process reads the samples that a page shows.

    Args:
        dataset: The dataset.

    Examples:
        >>> len(InWorker([("a text", 3)]))
        1
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        return _read(self.dataset, index)

    def read(self, indices: Sequence[int]) -> Iterator[Sample]:
        """Read some samples by a worker; no random number of this process is drawn."""
        loader = DataLoader(
            self, batch_size=None, sampler=indices, num_workers=1, generator=torch.Generator(),
        )  # fmt: skip
        yield from loader


def _label(item: Any) -> int | None:
    """The class that an item holds, if it is a whole number where labels usually are."""
    value = None
    if isinstance(item, Mapping):
        value = next((item[name] for name in LABELS if name in item), None)
    elif isinstance(item, (tuple, list)) and len(item) > 1:
        value = item[1]
    if isinstance(value, (Tensor, np.ndarray)):
        value = value.item() if value.ndim == 0 else None
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    return int(value) if whole else None  # type: ignore[arg-type]


@dataclass(frozen=True)
class Names:
    """Names of classes, where a dataset has them.

    Args:
        known: The names from class 0 on; none if they are unknown.

    Examples:
        >>> Names(("cat", "dog")).of(1), Names(()).of(1), Names(()).of(None)
        ('dog', '1', 'unknown')
    """

    known: tuple[str, ...]

    @classmethod
    def in_dataset(cls, dataset: Any) -> Names:
        """The names that a dataset has, if they are texts; else none.

        They are ``dataset.classes``, as in torchvision, or the ``names`` of the label in
        ``dataset.features``, as in Hugging Face's datasets; of a `Subset` those of what it is a part of.

        Args:
            dataset: Any dataset, or None.

        Examples:
            >>> from types import SimpleNamespace
            >>> animals = SimpleNamespace(features={"label": SimpleNamespace(names=["cat", "dog"])})
            >>> Names.in_dataset(Subset(animals, [1])).known
            ('cat', 'dog')
        """
        try:
            with preserved_random_state():  # a property may draw
                names = _names(dataset)
            texts = isinstance(names, (list, tuple)) and all(isinstance(c, str) for c in names)
            return cls(tuple(names) if texts else ())
        except Exception:  # a property of the user's code may raise anything
            return cls(())

    def of(self, label: int | None) -> str:
        """The name of a class, else its number."""
        if label is None:
            return "unknown"
        return self.known[label] if 0 <= label < len(self.known) else str(label)


def _names(dataset: Any) -> Any:
    """What may be the names of a dataset's classes, or None."""
    for _ in range(NESTED):
        if not isinstance(dataset, (Subset, InWorker)):
            break
        dataset = dataset.dataset  # other wrappers may number the classes anew
    classes = getattr(dataset, "classes", None)
    if classes is not None:
        return classes
    features = getattr(dataset, "features", None)
    if not isinstance(features, Mapping):
        return None
    # The first that is there, as of a sample: the names must be those of the labels that are shown.
    column = next((name for name in LABELS if name in features), None)
    return None if column is None else getattr(features[column], "names", None)


def spread(indices: Tensor, most: int) -> list[int]:
    """At most so many of some samples, evenly over them.

    Args:
        indices: The samples in any order, int64, shape (k,).
        most: Number of them to take.

    Examples:
        >>> spread(torch.arange(10, 20), 3), spread(torch.arange(2), 3)
        ([10, 14, 19], [0, 1])
    """
    if len(indices) <= most:
        return list(map(int, indices))
    places = torch.linspace(0, len(indices) - 1, most, dtype=torch.float64).long()
    return list(map(int, indices[places]))
