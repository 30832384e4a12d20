"""The few collectives of this package, over ``torch.distributed`` or in one process."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from prunesampler.base.meeting import gloo_group, wait_for_all
from prunesampler.base.memory import Room

T = TypeVar("T")

PIECE = 2**26  # bytes of a tensor that are sent at once

SAME_ARGUMENTS = (
    "so training would hang or use samples twice; build and load them with the same arguments on "
    "every rank"
)
WAYS_OUT = {
    "the models": f"{SAME_ARGUMENTS}, or wrap the model in DistributedDataParallel",
    "the samples of score_dataset": (
        "so scores would be those of other samples; build it alike on every rank: seed before "
        "random_split, or before making data"
    ),
    "the calls": "so they would wait for each other; make the same calls in the same order on all",
}


class Group(Protocol):
    """The processes that train together. All ranks make the same calls in the same order."""

    @property
    def rank(self) -> int:
        """Rank of this process."""

    @property
    def world(self) -> int:
        """Number of processes."""

    def meet(self, call: str) -> None:
        """Wait for all ranks to begin this call.

        Raises:
            RuntimeError: If some ranks do not call in time, or begin another call.
        """

    def gather(self, rows: Tensor, places: list[Tensor], room: Room | None = None) -> Tensor | None:
        """Collect every rank's rows on rank 0, in their places.

        Args:
            rows: This rank's rows, shape (k, ...), with the same dtype and row shape on all ranks.
            places: For every rank, where its rows belong, int64, shape (k,); together 0, ..., n - 1.
            room: Where all rows are put on rank 0; by default in memory.

        Returns:
            All rows on rank 0, shape (n, ...), on the CPU; None elsewhere.

        Raises:
            RuntimeError: If rank 0 has no room for them.
        """

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite the tensor with rank 0's."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""

    def raise_together(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank brings an error, so that none waits for another.

        Raises:
            RuntimeError: If another rank brings an error, with its message; this rank's own error is
                raised as it is.
        """

    def check_equal(self, what: str, *data: bytes) -> None:
        """Raise on every rank unless all bring the same data.

        Raises:
            RuntimeError: If the data differ, naming ``what`` and the ranks.
        """


class LocalGroup:
    """A single process, which has no other to wait for or to compare with.

    Examples:
        >>> group = LocalGroup()
        >>> group.gather(torch.tensor([1, 2]), [torch.tensor([0, 1])])
        tensor([1, 2])
    """

    rank = 0
    world = 1

    def meet(self, call: str) -> None:
        """Return at once."""

    def gather(self, rows: Tensor, places: list[Tensor], room: Room | None = None) -> Tensor | None:
        """The rows themselves."""
        del places, room
        return rows

    def broadcast(self, tensor: Tensor) -> None:
        """Leave the tensor as it is."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """The bytes themselves."""
        assert data is not None
        return data

    def raise_together(self, error: BaseException | None) -> None:
        """Raise the error, if there is one."""
        if error is not None:
            raise error

    def check_equal(self, what: str, *data: bytes) -> None:
        """Return at once."""


class ProcessGroup:
    """All processes of ``torch.distributed``, which accelerate and torchrun scripts set up.

    Whatever backend training uses, the collectives here run over gloo and on the CPU, where their
    data already is: they take no device memory, and do not interfere with those of training.
    The gloo group is made at the first collective. See :class:`Group` for the methods.

    Examples:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> ProcessGroup().broadcast_bytes(b"from rank 0")
        b'from rank 0'
        >>> dist.destroy_process_group()
    """

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def meet(self, call: str) -> None:
        """Wait in the store of ``torch.distributed``, then compare the calls."""
        wait_for_all(self.rank, self.world, call)
        self.check_equal("the calls", call.encode())

    def gather(self, rows: Tensor, places: list[Tensor], room: Room | None = None) -> Tensor | None:
        """Send the rows to rank 0, which needs memory for all of them, and for one piece."""
        shape, group = rows.shape[1:], gloo_group(self.rank, self.world)

        def make_room() -> Tensor | None:
            total = sum(map(len, places))
            return None if self.rank else (room or Room()).empty((total, *shape), rows.dtype)

        everyone = together(self, make_room)
        step = max(1, PIECE // max(1, math.prod(shape) * rows.element_size()))
        if everyone is None:
            for part in torch.split(rows, step):
                if part.numel():
                    dist.send(_flat_bytes(part), 0, group=group)
            return None
        everyone[places[0]] = rows.to("cpu")
        for rank in range(1, self.world):
            for place in torch.split(places[rank], step):
                part = rows.new_empty((len(place), *shape), device="cpu")
                if part.numel():
                    dist.recv(_flat_bytes(part), rank, group=group)
                    everyone[place] = part
        return everyone

    def broadcast(self, tensor: Tensor) -> None:
        """Write to the tensor only where it differs from rank 0's."""
        mine = _flat_bytes(tensor)
        content = torch.empty_like(mine) if self.rank else mine
        self._send_from(0, content)
        if not torch.equal(content, mine):
            tensor.detach().copy_(content.view(tensor.dtype).reshape(tensor.shape))

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""
        return self._bytes_from(0, data or b"")

    def raise_together(self, error: BaseException | None) -> None:
        """Raise this rank's error, or a RuntimeError with the message of another rank's."""
        failed = self._numbers(int(error is not None))
        if not any(failed):
            return
        first = failed.index(1)
        reason = self._bytes_from(first, f"{type(error).__name__}: {error}".encode())
        if error is not None:
            raise error
        raise RuntimeError(f"rank {first} failed while selecting: {reason.decode()}")

    def check_equal(self, what: str, *data: bytes) -> None:
        """Compare a hash of the data over all ranks."""
        digest = hashlib.blake2b(b"\0".join(data), digest_size=7).digest()
        values = self._numbers(int.from_bytes(digest, "little"))
        if len(set(values)) > 1:
            odd = [rank for rank, value in enumerate(values) if value != values[0]]
            way_out = WAYS_OUT.get(what, SAME_ARGUMENTS)
            raise RuntimeError(f"{what} differ between rank 0 and ranks {odd}, {way_out}")

    def _numbers(self, mine: int) -> list[int]:
        """Every rank's number, in the order of ranks."""
        numbers = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        dist.all_gather(numbers, torch.tensor([mine]), group=gloo_group(self.rank, self.world))
        return [int(number) for number in numbers]

    def _bytes_from(self, rank: int, data: bytes) -> bytes:
        """One rank's bytes, on every rank; what the others pass does not matter."""
        size = torch.tensor([len(data)])
        self._send_from(rank, size)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == rank:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        self._send_from(rank, content)
        return content.numpy().tobytes()

    def _send_from(self, rank: int, tensor: Tensor) -> None:
        """Overwrite a tensor on the CPU with one rank's."""
        if tensor.numel():
            dist.broadcast(tensor, rank, group=gloo_group(self.rank, self.world))


def _flat_bytes(tensor: Tensor) -> Tensor:
    """The content of a tensor as flat bytes on the CPU, since gloo does not support every dtype.

    The bytes share memory with the tensor if it is contiguous and on the CPU.
    """
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return plain.view(-1).view(torch.uint8)


def current_group() -> Group:
    """The processes of ``torch.distributed`` if there are several, else this one alone.

    Examples:
        >>> current_group().world
        1
    """
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup()
    return LocalGroup()


def check_world(processes: int, num_replicas: int) -> None:
    """Check that accelerate, and it alone, divides the samples among the current processes.

    Args:
        processes: Number of processes of the accelerator.
        num_replicas: Number of parts into which the sampler divides the samples.

    Raises:
        ValueError: If the sampler divides them too, or the numbers of processes differ.

    Examples:
        >>> check_world(processes=1, num_replicas=1)
    """
    if num_replicas > 1:
        raise ValueError(
            f"the sampler has num_replicas={num_replicas}, but accelerate shares out the batches "
            "itself; leave it at 1"
        )
    if processes != current_group().world:
        raise ValueError(
            f"the accelerator has {processes} processes, torch.distributed {current_group().world}; "
            "create the Accelerator before the callback"
        )


def together(group: Group, work: Callable[[], T]) -> T:
    """Do this rank's work; if it fails on any rank, raise on all, so that none waits for another.

    Examples:
        >>> together(LocalGroup(), lambda: 2 + 2)
        4
    """
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    group.raise_together(error)
    return cast(T, result)  # it is there unless the work failed, which was raised
