"""A sampler over a changing subset of a dataset's indices."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence, Sized
from copy import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from prunesampler.base.checks import (
    check_state,
    checked_indices,
    checked_seed,
    dataset_size,
    warn,
    whole_number,
)
from prunesampler.base.indices import decode, encode, permutations
from prunesampler.sampling.clock import EpochClock
from prunesampler.sampling.epoch_iterator import EpochIterator
from prunesampler.sampling.listening import Listening
from prunesampler.select.selection import Selection

STATE_VERSION = 1
STATE_KEYS = {"version", "n", "seed", "epoch", "kept"}
RUNS_AHEAD = (
    "The loader runs ahead, as infinite loaders with workers do, or the set was changed within an "
    "epoch, so training goes on with samples that were pruned: make the loader begin anew in "
    "on_selection= (ultralytics: loader.reset()), or use a plain DataLoader (timm: without "
    "--use-multi-epochs-loader)"
)


class InfluencePrunedSampler(Sampler[int]):
    """Yields the kept indices of a dataset, in an order that depends on (seed, epoch, kept) alone.

    At first all samples are kept. `restrict` takes effect with the next pass, so prune between
    epochs. A pass that runs to its end moves the epoch on by one, until somebody calls `set_epoch`.
    If you leave passes before their end, call it: otherwise the next pass repeats the order.

    Under accelerate, Lightning and the Hugging Face Trainer leave ``num_replicas`` and ``rank`` as
    they are, since these share out the batches themselves.

    Args:
        dataset: Map-style dataset of n samples.
        seed: Seed of the random order.
        shuffle: Whether every epoch has a new random order; otherwise indices ascend.
        num_replicas: Number of processes that share the indices, in plain ``torch.distributed``.
        rank: Rank of this process among them.
        uneven: How all ranks get the same number when the indices do not divide evenly: ``"pad"``
            repeats some, ``"drop"`` leaves some out.
        epoch_length: ``"shrink"`` yields each kept sample once in a pass; ``"constant"`` repeats
            them, reshuffled, until a pass is as long as the dataset, so that schedules still fit.

    Attributes:
        num_samples: number of samples in the dataset, n.
        clock: the clock that knows the epoch of the next pass.
        listening: who is told of passes that begin.

    Raises:
        TypeError: For anything but a map-style dataset.
        ValueError: For an empty dataset or an argument out of range.

    Examples:
        >>> sampler = InfluencePrunedSampler(range(6), seed=1)
        >>> sampler.restrict([0, 2, 5])
        >>> len(sampler), sorted(sampler)
        (3, [0, 2, 5])
        >>> sampler.epoch  # the pass above ran to its end
        1
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int = 0,
        shuffle: bool = True,
        num_replicas: int = 1,
        rank: int = 0,
        uneven: Literal["pad", "drop"] = "pad",
        epoch_length: Literal["shrink", "constant"] = "shrink",
    ) -> None:
        self.num_samples = dataset_size(dataset)
        if num_replicas < 1 or not 0 <= rank < num_replicas:
            raise ValueError(
                f"rank={rank} of num_replicas={num_replicas}: ranks run from 0 to num_replicas - 1"
            )
        if uneven not in ("pad", "drop"):
            raise ValueError(f"uneven must be 'pad' or 'drop', got {uneven!r}")
        if epoch_length not in ("shrink", "constant"):
            raise ValueError(f"epoch_length must be 'shrink' or 'constant', got {epoch_length!r}")
        self.dataset = dataset
        self.num_replicas = num_replicas
        self.rank = rank
        self.clock = EpochClock()
        self._min_kept = 1
        self._code: str | None = None  # the kept samples, encoded for a state
        self._current: weakref.ref[EpochIterator] | None = None  # the pass begun last
        self.listening = Listening()
        self.epoch_length = epoch_length
        self._seed = checked_seed(seed)
        self._shuffle = shuffle
        self._uneven = uneven
        self._kept = torch.arange(self.num_samples)
        self.check_size(self.num_samples)

    @property
    def epoch(self) -> int:
        """Epoch of the next pass."""
        return self.clock.epoch

    @property
    def kept(self) -> Tensor:
        """Indices in use, int64, ascending. Not a copy: do not change it."""
        return self._kept

    def restrict(self, selection: Selection | Tensor | Sequence[int]) -> None:
        """Keep only these samples from the next pass on; a selection's weights are left unused.

        Args:
            selection: A selection, or the indices to keep in any order.

        Raises:
            ValueError: If its size differs, or its indices repeat, are out of range or too few.
            TypeError: If indices are not whole numbers.
        """
        if isinstance(selection, Selection):
            if selection.num_samples != self.num_samples:
                raise ValueError(
                    f"the selection is of {selection.num_samples} samples, this sampler's dataset "
                    f"has {self.num_samples}; select on the same dataset"
                )
            kept = selection.kept
            if selection.weights is not None:
                warn(
                    "the sampler leaves the weights of the selection unused and yields every kept "
                    "sample once: give them to your loss, or as sample_weight= to what fits the "
                    "head, or restrict to selection.kept"
                )
        else:
            kept = checked_indices(selection, self.num_samples)
        self.check_size(len(kept))
        self._keep(kept)

    def reset(self) -> None:
        """Keep all samples again, from the next pass on."""
        if len(self._kept) < self.num_samples:
            self._keep(torch.arange(self.num_samples))

    def restart(self) -> None:
        """Begin a new run at epoch 0 with all samples, whatever was set or restored."""
        self.reset()
        self.clock.restart()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; passes no longer move it on, so call this before each."""
        self.clock.set(epoch)

    def __len__(self) -> int:
        """Number of indices in one pass on one rank."""
        return self.length(len(self._kept))

    def length(self, kept: int) -> int:
        """Number of indices in one pass on one rank if this many samples were kept."""
        total = self.num_samples if self.epoch_length == "constant" else kept
        whole, rest = divmod(total, self.num_replicas)
        return whole + (1 if rest and self._uneven == "pad" else 0)

    def __iter__(self) -> Iterator[int]:
        """Begin a pass over a snapshot of the kept set, which later changes do not affect.

        Raises:
            ValueError: If the dataset has another size than before.
        """
        self._check_unchanged()
        epoch = self.clock.begin()
        indices = self.indices(epoch)
        current = EpochIterator(indices, epoch, self.clock, self._pass_ended)
        self._current = weakref.ref(current)
        self.listening.pass_begins(indices, current)
        return current

    def __getstate__(self) -> dict[str, Any]:
        """State for copies, which get their own clock and no current pass."""
        return {**vars(self), "clock": copy(self.clock), "_current": None, "listening": Listening()}

    def _keep(self, kept: Tensor) -> None:
        """Change the kept set, and mark a pass that still runs over the old one as outdated."""
        current = None if self._current is None else self._current()
        if current is not None:
            current.outdate()
        self._kept, self._code = kept, None

    def _check_unchanged(self) -> None:
        if len(self.dataset) != self.num_samples:
            raise ValueError(
                f"the dataset had {self.num_samples} samples and has {len(self.dataset)} now; build "
                "sampler, pruner and callback from the dataset as it is trained on"
            )

    def _pass_ended(self, epoch: int, stale: int) -> None:
        self.clock.end(epoch)
        self.listening.pass_ended()
        if stale:
            warn(
                f"a pass that began before the kept set changed went on with its last {stale} samples "
                f"after it. {RUNS_AHEAD}"
            )

    def indices(self, epoch: int) -> list[int]:
        """All indices of one epoch on this rank, in order, as Python ints."""
        per_rank = len(self)
        total = per_rank * self.num_replicas
        passes = -(-total // len(self._kept))
        if self._shuffle:
            entropy = np.random.SeedSequence([self._seed, epoch])
            generator = torch.Generator()
            generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
            order = self._kept[permutations(len(self._kept), passes, generator)[:total]]
        else:
            order = self._kept.repeat(passes)[:total]
        ours: list[int] = order[self.rank :: self.num_replicas].tolist()
        return ours

    def require_batch(self, batch_size: int) -> None:
        """Refuse from now on to keep less than a batch, for loaders that drop their last batch.

        Raises:
            ValueError: If fewer samples are kept already.
        """
        self._min_kept = batch_size
        self.check_size(len(self._kept))

    def state_dict(self) -> dict[str, Any]:
        """Version, dataset size, seed, epoch and kept samples, in values that JSON can hold.

        The kept samples are one bit each, in base64. The iterator holds the position within a pass.
        """
        if self._code is None:
            self._code = encode(self._kept, self.num_samples)
        return {
            "version": STATE_VERSION,
            "n": self.num_samples,
            "seed": self._seed,
            "epoch": self.clock.coming,
            "kept": self._code,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on an error nothing changes.

        After `restore`, until the clock is settled, only the epoch is taken, and only if it is not
        over: loaders whose workers run ahead save, and load again, an older state of the sampler.

        Raises:
            ValueError: If the state has another version or dataset size, or is not valid.
        """
        seed, epoch, kept = self.read_state(state)
        if self.clock.settled:
            self._seed, self._kept, self._code = seed, kept, None
        self.clock.load(epoch)

    def restore(self, state: Mapping[str, Any], done: int) -> None:
        """As `load_state_dict`, for a callback that knows how many epochs are over.

        Args:
            state: State as `state_dict` returned it.
            done: Number of epochs that were over when the state was saved.
        """
        self.read_state(state)  # an error must change nothing
        self.clock.settle()
        self.load_state_dict(state)
        self.clock.hold(done)

    def read_state(self, state: Mapping[str, Any]) -> tuple[int, int, Tensor]:
        """Seed, epoch and kept indices of a state; changes nothing, raises as `load_state_dict`."""
        check_state(state, type(self).__name__, STATE_VERSION, STATE_KEYS)
        if state["n"] != self.num_samples:
            raise ValueError(
                f"the state is of a dataset of {state['n']} samples, this one has "
                f"{self.num_samples}; resume with the dataset of the checkpoint"
            )
        kept = decode(state["kept"], self.num_samples)
        seed, epoch = checked_seed(state["seed"]), whole_number("epoch", state["epoch"])
        self.check_size(len(kept))
        return seed, epoch, kept

    def check_size(self, kept: int) -> None:
        """Check that this many kept samples are enough for an epoch.

        Raises:
            ValueError: If they are not.
        """
        if kept == 0:
            raise ValueError("no sample would be kept; an epoch would be empty: keep at least one")
        if self.length(kept) == 0:
            raise ValueError(
                f"{kept} samples on num_replicas={self.num_replicas} with uneven='drop' leave every "
                "rank without any; keep more, or use uneven='pad'"
            )
        if self.length(kept) < self._min_kept:
            raise ValueError(
                f"{kept} kept samples make {self.length(kept)} a rank, fewer than the batch of "
                f"{self._min_kept} in a loader with drop_last=True: every epoch would be empty; "
                "prune less, use a smaller batch, or drop_last=False"
            )
