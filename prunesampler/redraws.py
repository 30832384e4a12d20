"""Selections one after another, from the same scores, in which everybody comes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prunesampler.distributed import current_group
from prunesampler.pruner import InfluencePruner
from prunesampler.rotation import older
from prunesampler.scores import Scores
from prunesampler.selection import Selection, complement


class Redraws:
    """Draws from the scores at hand, and remembers who was left out for how long.

    Args:
        pruner: measures and draws.
    """

    def __init__(self, pruner: InfluencePruner) -> None:
        self._pruner = pruner
        self._scores: Scores | None = None  # on rank 0 only
        self._ages = torch.zeros(pruner.num_samples, dtype=torch.int64)

    def draw(self, model: nn.Module, kept: Tensor, *, measure: bool) -> Selection:
        """The next selection; call it on all processes.

        Args:
            model: as it is trained.
            kept: indices of the samples kept so far.
            measure: measure anew; also done when nothing is measured yet.
        """
        group = current_group()
        measured = group.broadcast_bytes(bytes([self._scores is not None])) == b"\x01"
        anew = measure or not measured
        group.check_equal("the callbacks", repr(anew).encode(), self._ages.numpy().tobytes())
        if anew:
            self._scores = self._pruner.measure(model)
        if not measured:  # what is left out now was so before a run resumed
            left_out = complement(kept, len(self._ages))
            self._ages = older(self._ages, left_out) if len(left_out) else self._ages
        selection = self._pruner.redraw(self._scores, self._ages, certify=anew)
        self._ages = older(self._ages, selection.pruned)
        return selection

    def state_dict(self) -> dict[str, Any]:
        """The ages, and the measurements: ``4 n (2 C + D + 4)`` bytes, on rank 0 only."""
        return {
            "rank": current_group().rank,
            "ages": self._ages,
            "scores": self._scores.state_dict() if self._scores else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned on rank 0; on an error nothing changes.

        Raises:
            ValueError: when the state is not whole, of another dataset, or of another rank.
        """
        n, missing = len(self._ages), {"rank", "ages", "scores"} - set(state)
        if missing:
            raise ValueError(f"not a state of redraws: {sorted(missing)} missing")
        if state["rank"] != 0:
            raise ValueError(f"the state was saved on rank {state['rank']}; load the one of rank 0")
        ages, held = state["ages"], state["scores"]
        if not isinstance(ages, Tensor) or ages.dtype != torch.int64 or ages.shape != (n,):
            raise ValueError(f"the state's ages are not {n} whole numbers: a damaged checkpoint")
        here = held is not None and current_group().rank == 0
        self._scores = self._pruner.scores_from(held) if here else None
        self._ages = ages.to("cpu", torch.int64)
