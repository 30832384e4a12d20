"""One pass over indices, with a place that can be saved."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping


class EpochIterator(itertools.chain):  # type: ignore[type-arg]
    """One pass over a sampler, with a position that can be saved and restored.

    It chains the list of indices with a generator that yields nothing and runs when the list is used
    up; so stepping costs no Python call.
    """

    _indices: Iterator[int]
    _epoch: int
    _counted: list[int]  # the epoch that ends with this pass; empty when it had ended before
    _total: int
    _passes: deque[int]

    def __new__(
        cls, indices: list[int], epoch: int, ended: Callable[[int], None], passes: deque[int]
    ) -> EpochIterator:
        """A pass over the indices of an epoch.

        Args:
            indices: in order.
            epoch: whose order it is.
            ended: called with the epoch when the pass has run to its end.
            passes: gets the epoch of a pass that turns out to have ended before it was saved.
        """
        left, counted = iter(indices), [epoch]
        self = super().__new__(cls, left, cls._finish(counted, ended))
        self._indices, self._epoch, self._counted = left, epoch, counted
        self._total, self._passes = len(indices), passes
        return self

    def __init__(
        self, indices: list[int], epoch: int, ended: Callable[[int], None], passes: deque[int]
    ) -> None:
        """Nothing: `__new__` made everything, as `chain` is immutable."""

    @staticmethod
    def _finish(counted: list[int], ended: Callable[[int], None]) -> Iterator[int]:
        for epoch in counted:
            ended(epoch)
        return
        yield

    def remaining(self) -> int:
        """Indices that are still to come."""
        return _remaining(self._indices)

    def state_dict(self) -> dict[str, int]:
        """Epoch, position and length of this pass."""
        position = self._total - self.remaining()
        return {"epoch": self._epoch, "position": position, "length": self._total}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Move to a saved position; the sampler's own state must have been restored before.

        A pass that was saved at its very end, when the sampler had already moved on to the next
        epoch, is over at once.

        Raises:
            ValueError: when the position belongs to a pass of another length or epoch.
        """
        missing = {"epoch", "position", "length"} - set(state)
        if missing or not 0 <= state["position"] <= state["length"]:
            raise ValueError(f"not a position within a pass: {dict(state)!r}")
        over = state["position"] == state["length"] and state["epoch"] == self._epoch - 1
        same = (state["epoch"], state["length"]) == (self._epoch, self._total)
        if not (over or same):
            raise ValueError(
                f"the position is in epoch {state['epoch']} of {state['length']} indices, this pass "
                f"is epoch {self._epoch} of {self._total}; restore the sampler's state first"
            )
        skip = self._total if over else state["position"]
        skip -= self._total - self.remaining()
        if skip < 0:
            raise ValueError(f"position {state['position']} lies behind this pass; start a new one")
        next(itertools.islice(self._indices, skip, skip), None)
        if over:
            self._counted.clear()
            self._passes.append(state["epoch"])


def _remaining(indices: Iterator[int]) -> int:
    return indices.__length_hint__()  # type: ignore[attr-defined, no-any-return]
