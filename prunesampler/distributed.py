"""The few collectives that scoring needs, over ``torch.distributed`` or over nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


class Group(Protocol):
    """The processes that train together."""

    @property
    def rank(self) -> int:
        """Of this process."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, rows: Tensor, sizes: list[int]) -> list[Tensor] | None:
        """Collect every rank's rows, ``sizes[r]`` of them, on rank 0; None elsewhere."""

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite the tensor with rank 0's."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""

    def raise_together(self, error: BaseException | None) -> None:
        """Raise on every rank if any rank brings an error, so that none waits for another."""

    def check_equal(self, what: str, *data: bytes) -> None:
        """Raise on every rank unless all bring the same data."""


class LocalGroup:
    """One process."""

    rank = 0
    size = 1

    def gather(self, rows: Tensor, sizes: list[int]) -> list[Tensor] | None:
        """The rows."""
        del sizes
        return [rows]

    def broadcast(self, tensor: Tensor) -> None:
        """Nothing to do."""

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """The bytes."""
        assert data is not None
        return data

    def raise_together(self, error: BaseException | None) -> None:
        """Raise the error, if there is one."""
        if error is not None:
            raise error

    def check_equal(self, what: str, *data: bytes) -> None:
        """Nothing to compare."""


class ProcessGroup:
    """The default group of ``torch.distributed``, which accelerate and torchrun scripts set up."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        gpu = dist.get_backend() == "nccl"
        self._device = torch.device("cuda", torch.cuda.current_device()) if gpu else "cpu"

    def gather(self, rows: Tensor, sizes: list[int]) -> list[Tensor] | None:
        """Collect every rank's rows on rank 0; None elsewhere."""
        padded = torch.zeros(max(sizes), *rows.shape[1:], dtype=rows.dtype, device=self._device)
        padded[: len(rows)] = rows
        into = [torch.empty_like(padded) for _ in sizes] if self.rank == 0 else None
        dist.gather(padded, into)
        if into is None:
            return None
        return [part[:size].to(rows.device) for part, size in zip(into, sizes, strict=True)]

    def broadcast(self, tensor: Tensor) -> None:
        """Overwrite the tensor with rank 0's."""
        moved = tensor.detach().to(self._device).contiguous()
        dist.broadcast(moved, 0)
        tensor.detach().copy_(moved)

    def broadcast_bytes(self, data: bytes | None) -> bytes:
        """Rank 0's bytes, on every rank."""
        size = torch.tensor([len(data or b"")])
        self.broadcast(size)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == 0:
            content = torch.frombuffer(bytearray(data or b""), dtype=torch.uint8)
        self.broadcast(content)
        return content.numpy().tobytes()

    def raise_together(self, error: BaseException | None) -> None:
        """Raise the error where it is one's own, and a pointer to its rank elsewhere.

        Raises:
            RuntimeError: when another rank brings an error.
        """
        failed = torch.zeros(self.size, dtype=torch.int64, device=self._device)
        failed[self.rank] = int(error is not None)
        dist.all_reduce(failed)
        if error is not None:
            raise error
        ranks = failed.nonzero().flatten().tolist()
        if ranks:
            raise RuntimeError(f"rank {ranks[0]} failed while selecting; its own error says why")

    def check_equal(self, what: str, *data: bytes) -> None:
        """Compare a hash of the data over all ranks.

        Raises:
            RuntimeError: when they differ.
        """
        digest = hashlib.blake2b(b"\0".join(data), digest_size=7).digest()
        mine = torch.tensor([int.from_bytes(digest, "little")], device=self._device)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(all_of_them, mine)
        values = [int(value) for value in all_of_them]
        if len(set(values)) > 1:
            odd = [rank for rank, value in enumerate(values) if value != values[0]]
            raise RuntimeError(
                f"{what} differ between rank 0 and ranks {odd}, so training would hang or use "
                "samples twice; build and load them with the same arguments on every rank"
            )


def current_group() -> Group:
    """The processes at hand: the default process group where there is one of several, else one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return ProcessGroup()
    return LocalGroup()


def check_shares(processes: int, num_replicas: int) -> None:
    """Check that accelerate, and it alone, shares out the samples over the processes at hand.

    Args:
        processes: of the accelerator.
        num_replicas: of the sampler.

    Raises:
        ValueError: when it does not.
    """
    if num_replicas > 1:
        raise ValueError(
            f"the sampler has num_replicas={num_replicas}, but accelerate shares out the batches "
            "itself; leave it at 1"
        )
    if processes != current_group().size:
        raise ValueError(
            f"the accelerator has {processes} processes, torch.distributed {current_group().size}; "
            "create the Accelerator before the callback"
        )


def together(group: Group, work: Callable[[], T]) -> T:
    """Do this rank's work; if it fails on any rank, raise on all, so that none waits for another."""
    result: T | None = None
    error: Exception | None = None
    try:
        result = work()
    except Exception as raised:
        error = raised
    group.raise_together(error)
    return result  # type: ignore[return-value]
