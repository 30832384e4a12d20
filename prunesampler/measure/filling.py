"""Measurements that are filled batch by batch, so that nothing is held twice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunesampler.base.memory import Room
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences

SPARE = 20
"""A sequence in so many more is made room for: how many tokens they have is known at the end."""


class Filling:
    """Measurements of a known number of samples, of which batches arrive one after the other.

    Args:
        size: Number of samples.
        room: Where the tensors are put.

    Examples:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(2, 1), torch.ones(2, 1))
        >>> batch, filling = Measurements(delta, torch.ones(2, 3), hessian, losses), Filling(4, Room())
        >>> filling.add(batch)
        >>> filling.add(batch)
        >>> len(filling.measurements())
        4
    """

    def __init__(self, size: int, room: Room) -> None:
        self._size, self._room, self._filled, self._samples = size, room, 0, 0
        self._whole: Measurements | None = None
        self._counts: list[Tensor] = []

    def add(self, batch: Measured) -> None:
        """Put the next batch behind the others; labels are known only if every batch has them.

        Raises:
            ValueError: If the samples of the batch do not have the shape of those before.
        """
        self._samples += len(batch)
        if isinstance(batch, Sequences):
            self._counts.append(batch.counts)
        tokens = batch.tokens
        held, new = self._with_room(tokens).tensors(), tokens.tensors()
        for name in held.keys() & new.keys():
            if held[name].shape[1:] != new[name].shape[1:]:
                raise ValueError(
                    f"the measurements of samples change their shape between batches, from "
                    f"{tuple(held[name].shape[1:])} to {tuple(new[name].shape[1:])} ({name})"
                )
            together = torch.promote_types(held[name].dtype, new[name].dtype)
            if held[name].dtype != together:
                held[name] = held[name].to(together)
            held[name][self._filled : self._filled + len(tokens)] = new[name]
        self._whole = tokens.with_tensors({n: t for n, t in held.items() if n in new})
        self._filled += len(tokens)

    def _with_room(self, tokens: Measurements) -> Measurements:
        """What is filled, with room for these too: at once for all, as far as that can be told."""
        held, needed = self._whole, self._filled + len(tokens)
        if held is not None and needed <= len(held):
            return held
        expected = math.ceil(needed * self._size / self._samples)
        if held is None and self._counts:
            expected += expected // SPARE
        filled = self._filled

        def larger(tensor: Tensor) -> Tensor:
            room = self._room.empty((max(needed, expected), *tensor.shape[1:]), tensor.dtype)
            room[:filled] = tensor[:filled]
            return room

        return (tokens if held is None else held).map(larger)

    def measurements(self) -> Measured:
        """All batches, once they have arrived."""
        assert self._whole is not None
        assert self._samples == self._size
        whole = self._whole[: self._filled]
        return Sequences(whole, torch.cat(self._counts)) if self._counts else whole
