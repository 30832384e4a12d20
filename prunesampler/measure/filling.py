"""Measurements that are filled batch by batch, so that nothing is held twice."""

from __future__ import annotations

import torch

from prunesampler.base.memory import Room
from prunesampler.influence.measurements import Measurements


class Filling:
    """Measurements of a known number of samples, of which batches arrive one after the other.

    Args:
        size: Number of samples.
        room: Where the tensors are put.

    Example:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> batch, filling = Measurements(delta, torch.ones(2, 3), hessian, losses), Filling(4, Room())
        >>> filling.add(batch)
        >>> filling.add(batch)
        >>> len(filling.measurements())
        4
    """

    def __init__(self, size: int, room: Room) -> None:
        self._size, self._room, self._filled = size, room, 0
        self._whole: Measurements | None = None

    def add(self, batch: Measurements) -> None:
        """Put the next batch behind the others; labels are known only if every batch has them.

        Raises:
            ValueError: If the samples of the batch do not have the shape of those before.
        """
        if self._whole is None:
            self._whole = batch.map(lambda t: self._room.empty((self._size, *t.shape[1:]), t.dtype))
        held, new = self._whole.tensors(), batch.tensors()
        for name in held.keys() & new.keys():
            if held[name].shape[1:] != new[name].shape[1:]:
                raise ValueError(
                    f"the measurements of samples change their shape between batches, from "
                    f"{tuple(held[name].shape[1:])} to {tuple(new[name].shape[1:])} ({name})"
                )
            together = torch.promote_types(held[name].dtype, new[name].dtype)
            if held[name].dtype != together:
                held[name] = held[name].to(together)
            held[name][self._filled : self._filled + len(batch)] = new[name]
        self._whole = self._whole.with_tensors({n: t for n, t in held.items() if n in new})
        self._filled += len(batch)

    def measurements(self) -> Measurements:
        """All batches, once they have arrived."""
        assert self._whole is not None
        assert self._filled == self._size
        return self._whole
