"""The clock of a sampler: which epoch comes next, and which passes have begun."""

from __future__ import annotations

from collections import deque

from prunesampler.base.checks import whole_number


class EpochClock:
    """Knows which epoch the next pass of a sampler belongs to.

    Three parties can move the epoch: a loop that sets it, a callback that knows it, and the passes
    themselves. Once somebody has set it, only setting and loading move it.

    | event | nobody sets the epoch | somebody sets the epoch |
    |---|---|---|
    | `set` to e | e, and from now on it is set | e |
    | `reach` e | the later of epoch and e | stays |
    | a pass of the epoch ends | epoch + 1 | stays; `coming`, which a state holds, is epoch + 1 |
    | a pass of another epoch ends | stays | stays |
    | `load` e, settled | e | e |
    | `load` e after `hold` d, e >= d | e | e |
    | `load` e after `hold` d, e < d | stays: the state is older | stays |
    | `settle` | stays | stays |
    | `restart` | 0, and nobody sets it | 0, and nobody sets it |

    Attributes:
        epoch: epoch of the next pass.
        told: whether somebody sets the epoch.
        running: whether the pass that began last has not come to its end.
        restored: whether a state was loaded.
        begun: number of passes that have begun.

    Examples:
        >>> clock = EpochClock()
        >>> clock.end(clock.begin())  # a whole pass moves the epoch on
        >>> clock.epoch
        1
        >>> clock.set(1)
        >>> clock.end(clock.begin())  # not if somebody sets it
        >>> clock.epoch, clock.coming
        (1, 2)
        >>> clock.passes_since(0)
        [0, 1]
    """

    def __init__(self) -> None:
        self.running, self.begun = False, 0
        self._latest: deque[int] = deque(maxlen=1000)  # epochs of the passes that began last
        self.restart()

    def restart(self) -> None:
        """Begin a new run; the passes that have begun are still known."""
        self.epoch = 0
        self.told = self.restored = False
        self._over = False  # whether a pass of an epoch that was set has ended
        self._done: int | None = None  # number of epochs given to `hold`, until `settle`

    @property
    def coming(self) -> int:
        """The epoch that a run resumed from here begins with."""
        return self.epoch + self._over

    @property
    def settled(self) -> bool:
        """Whether a state that is loaded now replaces everything, not just the epoch."""
        return self._done is None

    def set(self, epoch: int) -> None:
        """Choose the epoch of the next pass."""
        self.epoch, self.told, self._over = whole_number("epoch", epoch), True, False

    def reach(self, epoch: int) -> None:
        """Learn that this epoch comes next, unless somebody sets the epoch.

        So each epoch has its own order even in a loop that leaves its passes before their end.
        """
        if not self.told:
            self.epoch = max(self.epoch, epoch)

    def begin(self) -> int:
        """Note that a pass begins, and return its epoch."""
        self._note(self.epoch)
        self.running = True
        return self.epoch

    def end(self, epoch: int) -> None:
        """Note that a pass of this epoch has come to its end."""
        self.running = False
        if self.epoch == epoch and self.told:
            self._over = True
        elif self.epoch == epoch:
            self.epoch += 1

    def skip(self, epoch: int) -> None:
        """Note that the current pass is one of this epoch, which had ended when it was saved."""
        self._note(epoch)
        self.running = False

    def passes_since(self, count: int) -> list[int]:
        """Epochs of the passes that began after the first ``count``, at most the last 1,000."""
        new = max(0, self.begun - count)
        return list(self._latest)[-new:] if new else []

    def load(self, epoch: int) -> None:
        """Take the epoch from a state, unless the state is older than `hold` allows."""
        if self._done is None or epoch >= self._done:
            self.epoch, self._over = epoch, False
        self.restored = True

    def hold(self, done: int) -> None:
        """Until `settle`, ignore states that were saved before this many epochs were over."""
        self._done = done

    def settle(self) -> None:
        """Accept every state again."""
        self._done = None

    def _note(self, epoch: int) -> None:
        self.begun += 1
        self._latest.append(epoch)
