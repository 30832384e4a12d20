"""Which samples are in the k-th batch of this process: known from the order that the sampler gave out."""

from __future__ import annotations

import math
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
REPLAYABLE = (
    "torch", "torchdata", "accelerate", "lightning", "pytorch_lightning", "lightning_fabric",
)  # fmt: skip
"""Packages whose batch samplers draw alike when they are run twice, and no random numbers of the run."""


class Misaligned(RuntimeError):
    """Batches do not come as the sampler gave them out, so their samples are not known."""


class HandedOut:
    """The batches of the pass that runs, in the order in which training meets them.

    Args:
        sampler: Sampler of the training loader.
        loader: The training loader, as it is iterated: after ``accelerator.prepare``.

    Raises:
        ValueError: If the loader does not draw from the sampler, or its batches are made elsewhere.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> sampler = InfluencePrunedSampler(range(5), shuffle=False)
        >>> loader = DataLoader(range(5), batch_size=2, sampler=sampler)
        >>> handed = HandedOut(sampler, loader)
        >>> [handed.next(len(batch)) for batch in loader]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(self, sampler: InfluencePrunedSampler, loader: Any = None) -> None:
        self._sampler = sampler
        self._loader: Any = None
        self._pass: EpochIterator | None = None
        self._indices: list[int] = []
        self._batches: deque[list[int]] | None = None  # made when the first of them is met
        self._places: dict[int, int] = {}
        self._met = 0  # samples of the batches that were met
        self._most: float = 0  # samples that the loader may be ahead of them
        sampler.listening.tell(self._begin)
        if loader is not None:
            self.follow(loader)

    @property
    def steps(self) -> EpochIterator | None:
        """The pass over the sampler that began last."""
        return self._pass

    def follow(self, loader: Any) -> None:
        """Expect the batches of this loader, also for a pass that has begun and met none yet.

        Raises:
            ValueError: If it does not draw from the sampler, or its batches are made elsewhere.
        """
        check_drawn(self._sampler, loader)
        self._loader = loader

    def _begin(self, indices: list[int], steps: EpochIterator) -> None:
        """A pass over the sampler begins; what is left of the one before was not trained on."""
        self._indices, self._pass, self._batches = indices, steps, None

    def _make(self) -> deque[list[int]]:
        """The batches of the pass, and where each sample comes in it first."""
        assert self._pass is not None
        # The later places first, so that the first of an index stays; no pairs are made that wake the collector.
        self._places = dict(
            zip(reversed(self._indices), range(len(self._indices))[::-1], strict=True)
        )
        _check_current(self._loader, self._pass.state_dict()["epoch"], len(self._indices))
        try:
            batches = deque(batches_of(self._loader, self._indices))
        except Exception as error:  # of a sampler that was made for another number of samples
            raise Misaligned(f"the loader's batches cannot be replayed: {error}") from error
        first = len(batches[0]) if batches else 0
        shared = sum(map(len, batches)) < len(self._indices) - first  # with other processes
        self._met, self._most = 0, math.inf if shared else self._pass.given_out() - first
        return batches

    def next(self, size: int) -> list[int]:
        """Samples of the next batch.

        Args:
            size: Number of rows that the layer was given.

        Raises:
            Misaligned: If the batch has another size, could not have been read yet, or comes after one
                that the layer was not given.
        """
        if self._pass is None:
            raise Misaligned("the layer ran before a pass over the sampler began")
        if self._batches is None:
            self._batches = self._make()
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
        given = self._pass.given_out()
        if max(map(self._places.__getitem__, batch)) >= given:
            raise Misaligned(
                "the layer ran for a batch whose samples the sampler had not given out yet: it runs twice "
                "in a batch, or other data is trained on as well"
            )
        self._met += size
        if given - self._met > self._most:
            raise Misaligned(
                "the loader is further ahead than at first: it gave out a batch that the layer was not given"
            )
        return batch

    def left_over(self) -> str | None:
        """Why the pass that has ended cannot be trusted, or None.

        All its batches were read, and some met no layer: such a batch was skipped, and those after it were
        taken for their neighbours; or the epoch ended early, when workers had read to its end.
        """
        if self._pass is None or not self._batches or self._pass.given_out() < len(self._indices):
            return None
        return (
            f"{len(self._batches)} batches that the loader had read did not reach the layer: they were skipped, or "
            "the epoch ended early"
        )


def check_drawn(sampler: InfluencePrunedSampler, loader: Any) -> None:
    """Check that a loader draws from this sampler, in an order that this process knows.

    Raises:
        ValueError: If it does not.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> sampler = InfluencePrunedSampler(range(6))
        >>> check_drawn(sampler, DataLoader(range(6), batch_size=2, sampler=sampler))
    """
    if type(loader).__name__ in ORDERS_ELSEWHERE:
        raise ValueError(
            "accelerate dispatches the batches of this loader from one process, so the others cannot know "
            "whose losses they see; use dispatch_batches=False"
        )
    chain = [link for link, _ in _chain(_first_link(loader))]
    if not chain:
        found = sampler_of(loader)
        raise ValueError(
            f"the loader draws from a {type(found).__name__}, not from an InfluencePrunedSampler; build it "
            "with sampler=, or with replace_sampler(loader, sampler), and pass the loader that is iterated"
        )
    if chain[-1] is not sampler:
        raise ValueError(
            "the loader draws from another InfluencePrunedSampler than this one; build the loader, the "
            "recorder and the callback with the same sampler"
        )
    if getattr(loader, "batch_sampler", None) is None:
        raise ValueError(
            "the loader has no batches of its own (batch_size=None), so it is not known which samples come "
            "together; give it a batch size"
        )
    for part in chain[:-1]:
        if type(part).__module__.partition(".")[0] not in REPLAYABLE:
            raise ValueError(
                f"the loader's batches are made by a {type(part).__name__} of {type(part).__module__}, which "
                "may not make them alike when asked twice, or may never end; use a plain DataLoader"
            )
    if not getattr(loader, "in_order", True):
        raise ValueError(
            "with in_order=False batches come in the order in which workers are done; leave it at True"
        )


def draws_from_ours(loader: Any) -> bool:
    """Whether a loader draws from an `InfluencePrunedSampler`, through whatever wrappers.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> draws_from_ours(DataLoader(range(6), shuffle=True))
        False
    """
    return bool(_chain(_first_link(loader)))


def batches_of(loader: Any, indices: list[int]) -> list[list[int]]:
    """The batches that a loader makes of a pass on this process.

    The loader's own batch samplers make them, in copies that draw from the indices.

    Args:
        loader: A loader that draws from an `InfluencePrunedSampler`.
        indices: Indices of the pass, in their order.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> loader = DataLoader(range(6), batch_size=4, sampler=InfluencePrunedSampler(range(6)))
        >>> batches_of(loader, [5, 3, 0, 1, 2])
        [[5, 3, 0, 1], [2]]
    """
    replayed: Any = indices
    for link, name in reversed(_chain(loader.batch_sampler)[:-1]):
        twin = copy(link)
        setattr(twin, name, replayed)
        replayed = twin
    return [list(batch) for batch in replayed]


def _check_current(loader: Any, epoch: int, size: int) -> None:
    """Check that a loader is made for a pass: the samplers that Lightning makes know its epoch and size.

    Raises:
        Misaligned: If it is not.
    """
    for link, _ in _chain(loader.batch_sampler)[:-1]:
        other, total = getattr(link, "epoch", epoch), getattr(link, "total_size", size)
        if other != epoch or abs(total - size) >= getattr(link, "num_replicas", 1):
            raise Misaligned(
                f"the loader that is known is of epoch {other} with {total} samples, and epoch {epoch} with "
                f"{size} began: it was made again, and not attached"
            )


def _first_link(loader: Any) -> Any:
    """What a loader draws its batches from or, without any, its samples."""
    batches = getattr(loader, "batch_sampler", None)
    return getattr(loader, "sampler", None) if batches is None else batches


def _chain(link: Any, depth: int = 0) -> list[tuple[Any, str]]:
    """The samplers from this one to an `InfluencePrunedSampler`, each with the name by which it holds the next.

    It is empty if none is there.
    """
    if isinstance(link, InfluencePrunedSampler):
        return [(link, "")]
    for name in LINKS if depth <= len(LINKS) else ():
        below = vars(link).get(name) if hasattr(link, "__dict__") else None
        rest = [] if below is None else _chain(below, depth + 1)
        if rest:
            return [(link, name), *rest]
    return []
