"""A sampler over a changing subset of a dataset's indices."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from prunesampler.checks import check_state, checked_indices, dataset_size, whole_number
from prunesampler.selection import Selection

STATE_VERSION = 1
STATE_KEYS = {"version", "n", "seed", "epoch", "kept"}


class InfluencePrunedSampler(Sampler[int]):
    """Yields the kept indices of a dataset, in an order that depends on (seed, epoch, kept) alone.

    It starts with all samples kept. Iterating changes nothing but the epoch: a pass that runs to its
    end moves the epoch on by one, until somebody calls `set_epoch`: from then on that is their work. A change by `restrict` takes
    effect with the next pass; prune between epochs. If you leave passes before their end, call
    `set_epoch`: otherwise the next pass begins as the last one did.

    Under accelerate, Lightning and the Hugging Face Trainer leave ``num_replicas`` and ``rank``
    alone: they share out the batches themselves.

    Args:
        dataset: map-style.
        seed: of the order.
        shuffle: a new order every epoch; otherwise ascending.
        num_replicas: processes that share the indices, in plain ``torch.distributed``.
        rank: of this process.
        uneven: when the indices do not divide evenly, ``"pad"`` repeats some, ``"drop"`` leaves some
            out. All ranks always get the same number.
        epoch_length: ``"shrink"``: a pass is the kept samples. ``"constant"``: the kept samples are
            repeated, reshuffled, until a pass is as long as the dataset, so that step counts and
            schedules stay as they were.

    Attributes:
        dataset: as it was given.
        epoch: of the next pass.
        passes: epochs of the passes begun since this was cleared, the latest last, at most 1,000.

    Raises:
        TypeError: for anything but a map-style dataset.
        ValueError: for an empty dataset or an argument out of range.
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
        self.epoch = 0
        self.passes: deque[int] = deque(maxlen=1000)
        self._told = False  # whether somebody sets the epoch
        self._done: int | None = None  # epochs that were over when `restore` was called
        self._min_kept = 1
        self.epoch_length = epoch_length
        self._seed = whole_number("seed", seed)
        self._shuffle = shuffle
        self._uneven = uneven
        self._kept = torch.arange(self.num_samples)
        self.check_size(self.num_samples)

    @property
    def kept(self) -> Tensor:
        """Indices in use, int64, ascending. Not a copy: do not change it."""
        return self._kept

    def restrict(self, selection: Selection | Tensor | Sequence[int]) -> None:
        """Keep only these samples from the next pass on.

        Args:
            selection: a selection, or the indices to keep in any order.

        Raises:
            ValueError: when it belongs to a dataset of another size, holds an index twice or out of
                range, or keeps too few.
            TypeError: when indices are not whole numbers.
        """
        if isinstance(selection, Selection):
            if selection.num_samples != self.num_samples:
                raise ValueError(
                    f"the selection is of {selection.num_samples} samples, this sampler's dataset "
                    f"has {self.num_samples}; select on the same dataset"
                )
            kept = selection.kept
        else:
            kept = checked_indices(selection, self.num_samples)
        self.check_size(len(kept))
        self._kept = kept

    def reset(self) -> None:
        """Keep all samples again, from the next pass on."""
        self._kept = torch.arange(self.num_samples)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass. Repeating it or going back is harmless."""
        self.epoch, self._told = whole_number("epoch", epoch), True

    def __len__(self) -> int:
        """Indices in one pass on one rank."""
        return self.length(len(self._kept))

    def length(self, kept: int) -> int:
        """Indices in one pass on one rank if that many samples were kept."""
        total = self.num_samples if self.epoch_length == "constant" else kept
        whole, rest = divmod(total, self.num_replicas)
        return whole + (1 if rest and self._uneven == "pad" else 0)

    def __iter__(self) -> Iterator[int]:
        """One pass: a snapshot, so later changes of the sampler do not reach it."""
        return EpochIterator(self)

    def indices(self, epoch: int) -> list[int]:
        """All indices of one epoch on this rank, in order, as Python ints."""
        per_rank = len(self)
        total = per_rank * self.num_replicas
        passes = -(-total // len(self._kept))
        if self._shuffle:
            entropy = np.random.SeedSequence([self._seed, epoch])
            generator = torch.Generator()
            generator.manual_seed(int(entropy.generate_state(1, np.uint64)[0]) >> 1)
            orders = [torch.randperm(len(self._kept), generator=generator) for _ in range(passes)]
            order = self._kept[torch.cat(orders)[:total]]
        else:
            order = self._kept.repeat(passes)[:total]
        ours: list[int] = order[self.rank :: self.num_replicas].tolist()
        return ours

    def require_batch(self, batch_size: int) -> None:
        """Refuse from now on to keep fewer than a batch, for loaders that drop their last one.

        Raises:
            ValueError: when fewer are kept already.
        """
        self._min_kept = batch_size
        self.check_size(len(self._kept))

    def state_dict(self) -> dict[str, Any]:
        """Version, dataset size, seed, epoch and kept indices: what the order depends on.

        The place within a pass belongs to the iterator, not here.
        """
        return {
            "version": STATE_VERSION,
            "n": self.num_samples,
            "seed": self._seed,
            "epoch": self.epoch,
            "kept": self._kept,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; on an error nothing changes.

        After `restore`, and until a pass has ended, ``kept`` is not taken from the state, nor is an
        epoch that is over. For loaders whose workers are ahead remember the sampler as it was then,
        and put that back when they begin to iterate.

        Raises:
            ValueError: when the state is of another version or dataset size, or not valid.
        """
        check_state(state, type(self).__name__, STATE_VERSION, STATE_KEYS)
        if state["n"] != self.num_samples:
            raise ValueError(
                f"the state is of a dataset of {state['n']} samples, this one has "
                f"{self.num_samples}; resume with the dataset of the checkpoint"
            )
        kept = checked_indices(state["kept"], self.num_samples)
        seed, epoch = whole_number("seed", state["seed"]), whole_number("epoch", state["epoch"])
        self.check_size(len(kept))
        if self._done is None:
            self._seed, self.epoch, self._kept = seed, epoch, kept
        elif epoch >= self._done:
            self.epoch = epoch

    def restore(self, state: Mapping[str, Any], done: int) -> None:
        """As `load_state_dict`, for a callback that knows how many epochs are over.

        Args:
            state: as `state_dict` returned it.
            done: epochs that were over when the state was saved.

        Raises:
            ValueError: see `load_state_dict`.
        """
        self._done, before = None, self._done
        try:
            self.load_state_dict(state)
        except (TypeError, ValueError):
            self._done = before
            raise
        self._done = done

    def check_size(self, kept: int) -> None:
        """Check that so many kept samples make an epoch.

        Raises:
            ValueError: when they do not.
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


class EpochIterator(itertools.chain):  # type: ignore[type-arg]
    """One pass over a sampler, with a position that can be saved and restored.

    It chains the list of indices with a generator that yields nothing and runs when the list is used
    up; so stepping costs no Python call.
    """

    _indices: Iterator[int]
    _epoch: int
    _counted: list[int]  # the epoch that ends with this pass; empty when it had ended before
    _total: int
    _passes: deque[int]  # the sampler's

    def __new__(cls, sampler: InfluencePrunedSampler) -> EpochIterator:
        """Snapshot the sampler's next pass."""
        epoch = sampler.epoch
        indices = iter(sampler.indices(epoch))
        counted = [epoch]
        sampler.passes.append(epoch)
        self = super().__new__(cls, indices, cls._finish(sampler, counted))
        self._indices, self._epoch, self._counted = indices, epoch, counted
        self._total, self._passes = _remaining(indices), sampler.passes
        return self

    def __init__(self, sampler: InfluencePrunedSampler) -> None:
        """Nothing: `__new__` made everything, as `chain` is immutable."""

    @staticmethod
    def _finish(sampler: InfluencePrunedSampler, counted: list[int]) -> Iterator[int]:
        if counted:
            sampler._done = None
        if sampler.epoch in counted and not sampler._told:
            sampler.epoch += 1
        return
        yield

    def state_dict(self) -> dict[str, int]:
        """Epoch, position and length of this pass."""
        position = self._total - _remaining(self._indices)
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
        skip -= self._total - _remaining(self._indices)
        if skip < 0:
            raise ValueError(f"position {state['position']} lies behind this pass; start a new one")
        next(itertools.islice(self._indices, skip, skip), None)
        if over:
            self._counted.clear()
            self._passes.append(state["epoch"])


def _remaining(indices: Iterator[int]) -> int:
    return indices.__length_hint__()  # type: ignore[attr-defined, no-any-return]
