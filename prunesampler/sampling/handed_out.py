"""Which samples are in the k-th batch of this process: known from the order that the sampler gave out."""

from __future__ import annotations

from collections import deque
from copy import copy
from typing import Any

from prunesampler.sampling.epoch_iterator import EpochIterator
from prunesampler.sampling.loaders import sampler_of
from prunesampler.sampling.sampler import InfluencePrunedSampler

LINKS = ("batch_sampler", "sampler", "dataset", "_sampler")
"""Attributes by which samplers of torch, accelerate and Lightning hold the one below."""
ORDERS_ELSEWHERE = ("DataLoaderDispatcher",)
"""Loaders of which one process reads for all, and sends batches whose samples the others do not know."""


class Misaligned(RuntimeError):
    """Batches do not come as the sampler gave them out, so their samples are not known."""


class HandedOut:
    """The batches of the pass that runs, in the order in which training meets them.

    Args:
        sampler: Sampler of the training loader.
        loader: The training loader, as it is iterated: after ``accelerator.prepare``.

    Raises:
        ValueError: If the loader does not draw from the sampler, or its batches are made elsewhere.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = InfluencePrunedSampler(range(5), shuffle=False)
        >>> loader = DataLoader(range(5), batch_size=2, sampler=sampler)
        >>> handed = HandedOut(sampler, loader)
        >>> for batch in loader:
        ...     print(handed.next(len(batch)))
        [0, 1]
        [2, 3]
        [4]
    """

    def __init__(self, sampler: InfluencePrunedSampler, loader: Any) -> None:
        self._sampler = sampler
        self.follow(loader)
        self._batches: deque[list[int]] = deque()
        self._places: dict[int, int] = {}
        self._pass: EpochIterator | None = None
        sampler.listening.tell(self._begin)

    def follow(self, loader: Any) -> None:
        """From the next pass on, expect the batches of this loader.

        Raises:
            ValueError: If it does not draw from the sampler, or its batches are made elsewhere.
        """
        check_drawn(self._sampler, loader)
        self._loader = loader

    def _begin(self, indices: list[int], steps: EpochIterator) -> None:
        """A pass over the sampler begins; what is left of the one before was not trained on."""
        self._batches = deque(batches_of(self._loader, indices))
        self._places = {index: place for place, index in reversed(list(enumerate(indices)))}
        self._pass = steps

    def next(self, size: int) -> list[int]:
        """Samples of the next batch.

        Args:
            size: Number of rows that the layer was given.

        Raises:
            Misaligned: If the batch has another size, or could not have been read yet.
        """
        if self._pass is None:
            raise Misaligned("the layer ran before a pass over the sampler began")
        if not self._batches:
            raise Misaligned(
                "the layer ran more often than the loader has batches: it runs twice in a batch, or other "
                "data is trained on as well"
            )
        batch = self._batches.popleft()
        if len(batch) != size:
            raise Misaligned(
                f"the layer was given {size} rows for a batch of {len(batch)} samples (several views, or "
                "tokens as rows)"
            )
        if max(self._places[index] for index in batch) >= self._pass.given_out():
            raise Misaligned(
                "the layer ran for a batch whose samples the sampler had not given out yet: it runs twice "
                "in a batch, or other data is trained on as well"
            )
        return batch


def check_drawn(sampler: InfluencePrunedSampler, loader: Any) -> None:
    """Check that a loader draws from this sampler, in an order that this process knows.

    Raises:
        ValueError: If it does not.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = InfluencePrunedSampler(range(6))
        >>> check_drawn(sampler, DataLoader(range(6), batch_size=2, sampler=sampler))
    """
    if type(loader).__name__ in ORDERS_ELSEWHERE:
        raise ValueError(
            "accelerate dispatches the batches of this loader from one process, so the others cannot know "
            "whose losses they see; use dispatch_batches=False"
        )
    if not draws_from_ours(loader):
        found = sampler_of(loader)
        raise ValueError(
            f"the loader draws from a {type(found).__name__}, not from an InfluencePrunedSampler; build it "
            "with sampler=, or with replace_sampler(loader, sampler), and pass the loader that is iterated"
        )
    if getattr(loader, "batch_sampler", None) is None:
        raise ValueError(
            "the loader has no batches of its own (batch_size=None), so it is not known which samples come "
            "together; give it a batch size"
        )


def draws_from_ours(loader: Any) -> bool:
    """Whether a loader draws from an `InfluencePrunedSampler`, through whatever wrappers.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> draws_from_ours(DataLoader(range(6), shuffle=True))
        False
    """
    batches = getattr(loader, "batch_sampler", None)
    link = getattr(loader, "sampler", None) if batches is None else batches
    return _replayed(link, [0], 0) is not None


def batches_of(loader: Any, indices: list[int]) -> list[list[int]]:
    """The batches that a loader makes of a pass on this process.

    The loader's own batch samplers make them, in copies that draw from the indices.

    Args:
        loader: A loader that draws from an `InfluencePrunedSampler`.
        indices: Indices of the pass, in their order.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(6), batch_size=4, sampler=InfluencePrunedSampler(range(6)))
        >>> batches_of(loader, [5, 3, 0, 1, 2])
        [[5, 3, 0, 1], [2]]
    """
    replayed = _replayed(loader.batch_sampler, indices, 0)
    assert replayed is not None
    return [list(batch) for batch in replayed]


def _replayed(link: Any, indices: list[int], depth: int) -> Any:
    """A copy of a chain of samplers that draws from these indices, or None if it does not lead here."""
    if isinstance(link, InfluencePrunedSampler):
        return indices
    if link is None or depth > len(LINKS):
        return None
    for name in LINKS:
        below = _replayed(
            vars(link).get(name) if hasattr(link, "__dict__") else None, indices, depth + 1
        )
        if below is not None:
            twin = copy(link)
            setattr(twin, name, below)
            return twin
    return None
