"""Repeated selections from the same scores, in which every sample returns within a few draws."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.base.files import unpack_state, write_atomically
from prunesampler.base.indices import complement
from prunesampler.base.processes import current_group, together
from prunesampler.pruner import InfluencePruner
from prunesampler.select.rotation import older
from prunesampler.select.scores import Scores
from prunesampler.select.selection import Selection


class Redraws:
    """Draws selections from the same scores, and remembers how long each sample was left out.

    Args:
        pruner: Pruner that measures and draws.
        folder: Folder into which rank 0 writes the measurements, so that states only name the file, which
            `Scores.load` reads, too; None to store them in every state.

    Examples:
        >>> from torch.utils.data import TensorDataset
        >>> from prunesampler import Budget
        >>> data = TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
        >>> pruner = InfluencePruner(data, budget=Budget(count=30), progress=False)
        >>> redraws, model = Redraws(pruner), torch.nn.Linear(4, 3)
        >>> first = redraws.draw(model, torch.arange(60), measure=True)
        >>> second = redraws.draw(model, first.kept, measure=False)
        >>> len(set(first.kept.tolist()) | set(second.kept.tolist()))
        60
    """

    def __init__(self, pruner: InfluencePruner, folder: Path | None = None) -> None:
        self._pruner, self._folder = pruner, folder
        self._file: str | None = None  # file with the measurements, named by its content
        self._scores: Scores | None = None  # on rank 0 only
        self._ages = torch.zeros(pruner.num_samples, dtype=torch.int64)

    @property
    def scores(self) -> Scores | None:
        """The scores that sets are drawn from, on rank 0 and once they are measured."""
        return self._scores

    def draw(self, model: nn.Module, kept: Tensor, *, measure: bool) -> Selection:
        """The next selection; call it on all processes.

        Args:
            model: Model as it is trained.
            kept: Indices of the samples kept so far, int64.
            measure: Whether to measure again; the first draw measures in any case.
        """
        group = current_group()
        measured = group.broadcast_bytes(bytes([self._scores is not None])) == b"\x01"
        anew = measure or not measured
        group.check_equal("the callbacks", repr(anew).encode(), self._ages.numpy().tobytes())
        if anew:
            self._scores = self._pruner.measure(model)
            together(group, self._write)
        if not measured:  # the samples left out now were left out before the run resumed
            left_out = complement(kept, len(self._ages))
            self._ages = older(self._ages, left_out) if len(left_out) else self._ages
        selection = self._pruner.redraw(self._scores, self._ages, certify=anew)
        self._ages = older(self._ages, selection.pruned)
        return selection

    def _write(self) -> None:
        """Write the measurements into their own file, if there is a folder."""
        if self._folder is not None and self._scores is not None:
            data = self._scores.to_bytes()
            self._file = None  # if writing fails, states hold the scores themselves
            name = f"scores-{hashlib.blake2b(data, digest_size=12).hexdigest()}.safetensors"
            self._folder.mkdir(parents=True, exist_ok=True)
            write_atomically(self._folder / name, data)
            self._file = name

    def _read(self, name: str) -> Mapping[str, Any]:
        """Read the measurements from the file that a state names."""
        if self._folder is None:
            raise ValueError(
                f"the measurements of this state are in a file of their own, {name}: give the callback "
                "the scores_dir= that the run had"
            )
        file = self._folder / Path(name).name
        if not file.exists():
            raise ValueError(
                f"{file} is not there, which holds the measurements of this state; give the callback "
                "the scores_dir= that the run had"
            )
        data = file.read_bytes()
        if hashlib.blake2b(data, digest_size=12).hexdigest() not in name:
            raise ValueError(f"{file} is damaged: its content is not what its name says")
        held = unpack_state(data).get("scores")
        if not isinstance(held, Mapping):
            raise ValueError(
                f"{file} is not what Scores.save writes: an older release wrote it; measure again"
            )
        return held

    def state_dict(self) -> dict[str, Any]:
        """The ages, and the measurements or the name of their file, on rank 0 only.

        The measurements take ``4 n (2 C + D + 4)`` bytes.
        """
        return {
            "rank": current_group().rank,
            "ages": self._ages,
            "scores": self._scores.state_dict() if self._scores and not self._file else None,
            "file": self._file,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: If the state is incomplete, or of another dataset or rank.
        """
        n, missing = len(self._ages), {"rank", "ages", "scores"} - set(state)
        if missing:
            raise ValueError(f"not a state of redraws: {sorted(missing)} missing")
        if state["rank"] != 0 and current_group().rank == 0:
            raise ValueError(f"the state was saved on rank {state['rank']}; load the one of rank 0")
        ages, held = state["ages"], state["scores"]
        if not isinstance(ages, Tensor) or ages.dtype != torch.int64 or ages.shape != (n,):
            raise ValueError(f"the state's ages are not {n} whole numbers: a damaged checkpoint")
        here = current_group().rank == 0
        if here and state.get("file") is not None:
            held = self._read(str(state["file"]))
        self._file = state.get("file")
        here = here and held is not None
        self._scores = self._pruner.scores_from(held) if here else None
        self._ages = ages.to("cpu", torch.int64)
