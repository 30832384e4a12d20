"""Leaves out, in each epoch, the samples on which training makes the smallest errors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from prunesampler.base.checks import checked_seed, warn
from prunesampler.base.indices import complement
from prunesampler.influence.headroom import headroom
from prunesampler.select.selection import Selection
from prunesampler.solve.budget import Budget
from prunesampler.train.pruners import Pruner
from prunesampler.train.recorder import TrajectoryRecorder
from prunesampler.train.trajectory import Trajectory


class TrajectoryPruner(Pruner):
    """Keeps the samples of largest error, by a recorded run or by the run itself.

    Give the callback ``refresh_every=1``, so that every epoch has its own set.

    With a recorded trajectory, usually of a small network, the errors are those of the same share of its run:
    half-way through this run, those of half-way through that one. With the recorder of this run they
    are those that each sample had when it was last seen, and nobody stays away longer than
    ``returns_within`` epochs. Where the recording ends, samples are drawn at random from then on.

    Source: the second network of the CIFAR-10 speed record to 96 % (Keller Jordan, airbench96_faster, 2024)
    trains on the hardest half of each batch, by the losses of a small one.

    Args:
        source: A recorded trajectory, or the recorder of this run.
        budget: How much to prune; floors per class do not apply.
        epochs: Number of epochs of this run; needed with a recorded trajectory.
        mix: Share of the kept samples that is drawn at random from the others, 0 to 1.
        returns_within: Number of epochs after which a sample that was left out is seen again, for a recorder
            alone; by default as few as the budget allows, and at least 4.
        progress: Whether to say in the terminal what is kept.
        seed: Seed of what is drawn.

    Raises:
        ValueError: For a budget with ``epsilon``, or arguments that do not fit.

    Examples:
        >>> trajectory = Trajectory(torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.1, 0.8, 0.9, 0.2]]))
        >>> pruner = TrajectoryPruner(trajectory, budget=Budget(count=2), epochs=4)
        >>> [pruner.choose(epoch, None).kept.tolist() for epoch in range(4)]
        [[0, 1], [0, 1], [1, 2], [1, 2]]
    """

    changes = True

    def __init__(
        self,
        source: Trajectory | TrajectoryRecorder,
        *,
        budget: Budget,
        epochs: int | None = None,
        mix: float = 0.0,
        returns_within: int | None = None,
        progress: bool = True,
        seed: int = 0,
    ) -> None:
        self.num_samples, self.budget, self.progress = source.num_samples, budget, progress
        if budget.epsilon is not None:
            raise ValueError(
                "epsilon= bounds a shift, of which a trajectory knows nothing; give fraction= or count="
            )
        self._keep = self.num_samples - budget.count_of(self.num_samples)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must be from 0 to 1, got {mix}")
        if isinstance(source, Trajectory):
            source.check(self.num_samples)
            if epochs is None or epochs < 1:
                raise ValueError(
                    f"epochs={epochs}: with a recorded trajectory give the number of epochs of this run, at "
                    "whose share it is read"
                )
        self.source, self._epochs, self._mix = source, epochs, mix
        self.recorder = source if isinstance(source, TrajectoryRecorder) else None
        self._seed, self._told = checked_seed(seed), False
        least = math.ceil(self.num_samples / self._keep) + 1
        self._within = max(4, least) if returns_within is None else returns_within
        if self._within < least:
            raise ValueError(
                f"returns_within={returns_within}: with {self._keep} of {self.num_samples} samples kept, all are "
                f"seen again within {least} epochs at the earliest"
            )

    def choose(self, epoch: int, model: nn.Module) -> Selection:
        """The samples to prune in this epoch: those of smallest error.

        Args:
            epoch: The coming epoch, counted from 0.
            model: Not looked at.

        Raises:
            ValueError: If nothing was recorded.
        """
        del model
        errors, back = self._errors(epoch)
        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        kept = hardest(errors, back, self._keep, self._mix, draw)
        return Selection(
            complement(kept, self.num_samples), self.num_samples, math.nan, math.nan, None, self.budget,
            metadata={
                "headroom": headroom(errors), "by": "the errors of training", "layer": self._layer(),
            },
        )  # fmt: skip

    def _layer(self) -> str | None:
        """Name of the layer whose errors these are."""
        source = self.source
        return source.layer if isinstance(source, Trajectory) else source.trajectory.layer

    def _errors(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Error of each sample, and which must come back, boolean; both of shape (n,)."""
        if isinstance(self.source, Trajectory):
            assert self._epochs is not None
            whole = self.source
            reached = min(len(whole), epoch * len(whole) // self._epochs + 1)
            return whole.last_seen(reached), torch.zeros(self.num_samples, dtype=torch.bool)
        trajectory = self.source.trajectory
        if self.source.ended:
            if not self._told:
                warn(
                    "the recording of the trajectory has ended, so from now on the samples of each epoch are drawn at "
                    "random"
                )
            self._told = True
            unknown = torch.full((self.num_samples,), math.nan)
            return unknown, torch.zeros(self.num_samples, dtype=torch.bool)
        if not len(trajectory):
            raise ValueError(
                "nothing was recorded yet; call recorder.on_epoch_end() after each epoch, or let the callback "
                "do it, with the recorder attached to the loader and the model"
            )
        return trajectory.last_seen(), due(trajectory.unseen_for(), self._keep, self._within)


def due(ages: Tensor, keep: int, within: int) -> Tensor:
    """Which samples must be kept now, so that all can be seen in time, boolean, shape (n,).

    If nobody came back before it is the last moment, more would be due at once than can be kept. So as many
    come back as the others leave no room for later, those first that were left out longest.

    Args:
        ages: Number of epochs since each sample was seen, int64, shape (n,).
        keep: Number of samples that are kept in each epoch.
        within: Number of epochs in a row of which a sample must be in one, at least ``n / keep``.

    Examples:
        >>> due(torch.tensor([0, 0, 2, 1, 1]), keep=1, within=5).tolist()
        [False, False, True, False, False]
    """
    left = (within - 1 - ages).clamp(min=0)  # epochs that a sample may still wait
    waiting = torch.bincount(left, minlength=within).cumsum(0)
    many = int((waiting - keep * torch.arange(within)).max())
    order = left.argsort(stable=True)
    back = torch.zeros(len(ages), dtype=torch.bool)
    back[order[: min(max(0, many), keep)]] = True
    return back


def hardest(
    errors: Tensor, back: Tensor, keep: int, mix: float, generator: torch.Generator
) -> Tensor:
    """Indices to keep, int64, shape (keep,), ascending.

    Args:
        errors: Error of each sample, shape (n,); a sample without one (NaN) counts as the hardest.
        back: Which samples are kept whatever their error, at most ``keep``, boolean, shape (n,).
        keep: Number of samples to keep.
        mix: Share of them that is drawn at random from those that are not among the hardest.
        generator: Random numbers of the draw, and of the order of equal errors.

    Examples:
        >>> errors, nobody = torch.tensor([0.1, 0.9, 0.5, 0.2]), torch.zeros(4, dtype=torch.bool)
        >>> hardest(errors, nobody, 2, 0.0, torch.Generator()).tolist()
        [1, 2]
    """
    n = len(errors)
    luck = torch.randperm(n, generator=generator)
    first = torch.where(back, math.inf, errors.nan_to_num(torch.finfo(errors.dtype).max))
    order = luck[first[luck].argsort(descending=True, stable=True)]
    drawn = min(round(mix * keep), keep - int(back.sum()))
    top, rest = order[: keep - drawn], order[keep - drawn :]
    more = rest[torch.randperm(len(rest), generator=generator)[:drawn]]
    return torch.cat([top, more]).sort().values
