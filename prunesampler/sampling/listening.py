"""Who is told of a sampler's passes, and whether the callback that should act on them is called."""

from __future__ import annotations

from collections.abc import Callable

from prunesampler.base.checks import warn
from prunesampler.sampling.epoch_iterator import EpochIterator

UNHEARD = 3
"""Number of passes after which a warning tells that the callback has not been called."""

Begun = Callable[[list[int], EpochIterator], None]
"""Called with a pass's indices in their order, and the pass."""


class Listening:
    """Tells of passes that begin, and counts those that end while the callback is not called.

    Examples:
        >>> listening, heard = Listening(), []
        >>> listening.tell(lambda indices, steps: heard.append(indices))
        >>> listening.pass_begins([3, 1], ...)
        >>> heard
        [[3, 1]]
    """

    def __init__(self) -> None:
        self._told: list[Begun] = []
        self._unheard: int | None = None  # passes that ended while the callback was not called

    def tell(self, begun: Begun) -> None:
        """From now on call this when a pass begins."""
        self._told.append(begun)

    def expect_call(self) -> None:
        """From now on warn, once, when passes end and the callback is not called."""
        self._unheard = 0

    def called(self) -> None:
        """Note that the callback was called, so that no warning is needed."""
        self._unheard = None

    def pass_begins(self, indices: list[int], steps: EpochIterator) -> None:
        """A pass begins; warn if several have ended unheard."""
        if self._unheard is not None and self._unheard >= UNHEARD:
            passes, self._unheard = self._unheard, None
            warn(
                f"{passes} passes over the sampler have ended, and nobody has called the "
                "PruningCallback that was made with it, so nothing is pruned: call "
                "pruning.on_epoch_end(epoch, model) at the end of each epoch"
            )
        for begun in self._told:
            begun(indices, steps)

    def pass_ended(self) -> None:
        """A pass has ended."""
        if self._unheard is not None:
            self._unheard += 1
