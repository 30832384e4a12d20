"""Checks on a few samples before all of them are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import Dataset

from prunesampler.base.checks import dataset_size, warn
from prunesampler.base.processes import Group, together
from prunesampler.measure.batches import content, label_of, outline
from prunesampler.measure.isolation import preserved_random_state
from prunesampler.measure.reading import Reading, copied, spread
from prunesampler.measure.undisturbed import undisturbed

PROBES = 8
"""Number of samples that are compared between ranks, and whose labels a state remembers."""
COLLATIONS = 3
"""Number of times the same items are collated, more than two since mixup may be skipped at times."""


@contextmanager
def explained() -> Iterator[None]:
    """Add a note to errors inside that says where they happened (from Python 3.11 on).

    Examples:
        >>> try:
        ...     with explained():
        ...         raise ValueError("labels are out of range")
        ... except ValueError as error:
        ...     hasattr(error, "__notes__") == hasattr(error, "add_note")
        True
    """
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(
                "This happened while prunesampler ran the model on a batch of score_dataset, read and put "
                "together by collate_fn= (default: torch's), with losses= (default: cross-entropy on "
                "(x, y) or a mapping with labels). Give the pruner what your training loader has: "
                "InfluencePruner(..., like=loader); and for batches of another form, or that your loop "
                "converts and normalises, losses=CrossEntropy(run=lambda model, batch: (logits, targets))."
            )
        raise


def probe(dataset: Dataset[Any], reading: Reading, group: Group) -> str:
    """Look at a few samples of a dataset, on all ranks.

    Warns if an item is not the same when it is read twice.

    Args:
        dataset: The dataset to be measured.
        reading: How to read it.
        group: The processes, all of which call this.

    Returns:
        A hash of labels and shapes, by which the dataset is recognised.

    Raises:
        RuntimeError: If the ranks hold different samples, or one of them failed.

    Examples:
        >>> from prunesampler.base.processes import LocalGroup
        >>> first, second = ([([1.0], label) for label in labels] for labels in ((0, 1), (1, 0)))
        >>> probe(first, Reading(), LocalGroup()) == probe(second, Reading(), LocalGroup())
        False
    """
    size = dataset_size(dataset)
    places = spread(size, PROBES)
    again = sorted({places[0], places[len(places) // 2], places[-1]})
    items = together(group, lambda: reading.items(dataset, [*places, *again]))
    first = dict(zip(places, items, strict=False))
    repeated = zip(again, items[len(places) :], strict=True)
    changing = [index for index, item in repeated if content(first[index]) != content(item)]
    if changing and group.rank == 0:
        warn(
            f"score_dataset gives another item {changing[0]} each time it is read; scores would "
            "be of one random augmentation: give it the evaluation transform"
        )
    compared = [label_of(item) for item in first.values()] if changing else list(first.values())
    group.check_equal("the samples of score_dataset", content(compared))
    known = repr([outline(item) for item in first.values()])
    return hashlib.blake2b(known.encode()).hexdigest()[:16]


def check_collate(dataset: Dataset[Any], reading: Reading) -> None:
    """Check that the collate function always makes the same batch from the same items, in their order.

    Raises:
        ValueError: If it does not, as with mixup, cutmix and random masking, or if it sorts them.

    Examples:
        >>> check_collate([(1.0, 0), (2.0, 1)], Reading())
    """
    collate_fn, items = reading.collate_fn, reading.items(dataset, spread(dataset_size(dataset), 4))
    with explained(), preserved_random_state(), undisturbed(collate_fn):
        hashes = {content(collate_fn(copied(items))) for _ in range(COLLATIONS)}
    if len(hashes) > 1:
        raise ValueError(
            f"collate_fn {_name(collate_fn)} makes another batch of the same samples each time (mixup, cutmix, "
            "random masking?), so scores would be of random mixtures; give the pruner a collate_fn= "
            "without it, such as torch's default_collate, also beside like="
        )
    if _sorts(dataset, reading):
        raise ValueError(_sorting(collate_fn))


def check_loader(loader: Any) -> None:
    """Check that a training loader leaves samples in their order; what only it can read is left to it.

    Raises:
        ValueError: If its collate function sorts them, so that nobody could know whose loss is whose.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> check_loader(DataLoader(range(6), batch_size=2))
    """
    try:
        found = _sorts(loader.dataset, Reading.like(loader))
    except Exception:
        return
    if found:
        raise ValueError(_sorting(loader.collate_fn))


def _sorts(dataset: Dataset[Any], reading: Reading) -> bool:
    """Whether the collate function makes the same batch of different samples whatever their order."""
    collate_fn, items = reading.collate_fn, reading.items(dataset, spread(dataset_size(dataset), 4))
    with explained(), preserved_random_state(), undisturbed(collate_fn):
        one, other = (content(collate_fn(copied(way))) for way in (items, items[::-1]))
    return one == other and content(items) != content(items[::-1])


def _sorting(collate_fn: Any) -> str:
    return (
        f"collate_fn {_name(collate_fn)} makes the same batch of the same samples in any order: it sorts them, so "
        "nobody could know whose loss is whose; leave the order as it is, for example with "
        "pack_padded_sequence(..., enforce_sorted=False)"
    )


def _name(collate_fn: Any) -> str:
    return getattr(collate_fn, "__qualname__", type(collate_fn).__name__)


def check_same_labels(training_set: Any, score_dataset: Any, reading: Reading) -> None:
    """Warn if labels differ between the two datasets, which are then not in the same order.

    Args:
        training_set: The dataset that training reads.
        score_dataset: The dataset that is measured.
        reading: How to read both.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     check_same_labels([(1.0, 0), (2.0, 1)], [(2.0, 1), (1.0, 0)], Reading())
        >>> str(caught[0].message)[:40]
        'sample 0 has label 0 in the training set'
    """
    if training_set is score_dataset:
        return
    places = spread(dataset_size(score_dataset), PROBES + 1)
    try:
        pairs = [reading.items(data, places) for data in (training_set, score_dataset)]
    except Exception:
        return  # a training set that only its own loader can read is no reason to end a run
    for index, first, second in zip(places, *pairs, strict=True):
        labels = label_of(first), label_of(second)
        if None not in labels and labels[0] != labels[1]:
            warn(
                f"sample {index} has label {labels[0]} in the training set and {labels[1]} in "
                "score_dataset: they are not in the same order, and the wrong samples would be "
                "pruned"
            )
            return
