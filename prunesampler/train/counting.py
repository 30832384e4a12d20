"""Checks that a loop, its data and its states fit the callback."""

from __future__ import annotations

import logging
import sys
import weakref
from typing import Literal

from prunesampler.base.checks import warn, whole_number
from prunesampler.base.processes import current_group
from prunesampler.sampling.sampler import InfluencePrunedSampler
from prunesampler.train.pruners import Pruner

logger = logging.getLogger("prunesampler")

BY_LENGTH = (
    "A script that finds its place as step // len(loader) needs "
    'InfluencePrunedSampler(..., epoch_length="constant"), since pruned epochs are shorter'
)


def check_epoch(epoch: int, ended: int, *, loaded: bool, restored: bool) -> None:
    """Check that the epoch that ended follows the last one that ended before.

    Args:
        epoch: Epoch that ended, as counted by the loop.
        ended: Last epoch whose end was seen, -1 before any.
        loaded: Whether ``ended`` is known from a state, and no epoch has ended since.
        restored: Whether the sampler, at least, was restored from a state.

    Raises:
        ValueError: If the loop counts from 1, calls more than once an epoch, or resumes elsewhere.

    Examples:
        >>> check_epoch(0, -1, loaded=False, restored=False)
    """
    epoch, coming = whole_number("epoch", epoch), ended + 1
    if loaded and epoch != coming:
        raise ValueError(
            f"the first epoch after the state was loaded is {epoch}, but {coming} epochs had ended when "
            f"it was saved, so it should be {coming}. {BY_LENGTH}; a state that was saved before "
            f"on_epoch_end({coming}, model) needs pruning.catch_up(epoch, model) before the first epoch"
        )
    if epoch == ended:
        raise ValueError(
            f"on_epoch_end({epoch}, model) was called before: call it once at the end of each epoch, "
            "not after every step"
        )
    if epoch < ended:
        raise ValueError(
            f"on_epoch_end({epoch}, model) comes after epoch {ended}: epochs count up; for another run "
            "with the same callback call pruning.reset() first"
        )
    if coming == 0 and restored:
        return
    if epoch == 1 and coming == 0:
        raise ValueError(
            "the first call is on_epoch_end(1, model), but epochs count from 0, and pruning would come "
            "an epoch early: call on_epoch_end(epoch - 1, model), or loop over range(EPOCHS). If this "
            "run resumes at epoch 1, load pruning.state_dict() or call pruning.catch_up(1, model) first"
        )
    if epoch > coming:
        missed = f"epoch {coming}" if epoch == coming + 1 else f"epochs {coming} to {epoch - 1}"
        warn(
            f"on_epoch_end was not called for {missed}, so what was due then comes late or never; call it "
            "for every epoch, make the callback once before the loop, and in a resumed run load "
            "pruning.state_dict() before the first epoch"
        )


def check_fit(sampler: InfluencePrunedSampler, pruner: Pruner) -> None:
    """Check that a sampler and a pruner can serve one run.

    Raises:
        ValueError: For a pruner over another number of samples, or a budget that leaves too few.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> check_fit(
        ...     InfluencePrunedSampler(range(6)), InfluencePruner(range(6), budget=Budget(count=2))
        ... )
    """
    n = sampler.num_samples
    if pruner.num_samples != n:
        raise ValueError(
            f"score_dataset has {pruner.num_samples} samples, the sampler's dataset {n}; score the "
            "training set itself, without augmentation (a trajectory: record it on the training set)"
        )
    sampler.check_size(n - pruner.budget.count_of(n))
    if len(sampler.kept) < n and not sampler.clock.restored:
        warn(
            f"the sampler is restricted to {len(sampler.kept)} of {n} samples already, on which the "
            "warm-up would run too; for another run with it, call sampler.restart() first"
        )


def checked_on_error(on_error: Literal["raise", "continue"]) -> Literal["raise", "continue"]:
    """Return ``on_error`` unchanged, if it is one of the two words allowed.

    Raises:
        ValueError: If it is another word.

    Examples:
        >>> checked_on_error("continue")
        'continue'
    """
    if on_error not in ("raise", "continue"):
        raise ValueError(f"on_error must be 'raise' or 'continue', got {on_error!r}")
    return on_error


def check_same_data(pruner: Pruner, outline: str | None) -> None:
    """Check that a state was saved with the current dataset, if the state tells.

    Args:
        pruner: Pruner over the current dataset.
        outline: `InfluencePruner.outline` in the state, or None where it holds none.

    Raises:
        ValueError: If it was another dataset.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> pruner = InfluencePruner(range(6), budget=Budget(count=2))
        >>> check_same_data(pruner, None)
    """
    if outline is not None and outline != pruner.look():
        raise ValueError(
            "the state is of another dataset of the same size: a few labels and shapes of "
            "score_dataset are not those it was saved with; resume with the dataset of the "
            "checkpoint, in the same order"
        )


def check_sharing(sampler: InfluencePrunedSampler) -> None:
    """Warn when processes do not share out the samples, or accelerate runs without our knowledge.

    Examples:
        >>> check_sharing(InfluencePrunedSampler(range(6)))  # one process, no Accelerator
    """
    state, world = sys.modules.get("accelerate.state"), current_group().world
    if state is not None and state.is_initialized():
        warn(
            "there is an Accelerator, but the callback was made without it, so save_state and its "
            "trackers know nothing of the pruning: pass accelerator= to PruningCallback"
        )
    elif world > 1 and sampler.num_replicas == 1:
        warn(
            f"{world} processes train, and the sampler hands all samples to each of them: give "
            "InfluencePrunedSampler num_replicas=dist.get_world_size() and rank=dist.get_rank(), or "
            "let accelerate share them out and pass accelerator= to PruningCallback"
        )


def say_where(sampler: InfluencePrunedSampler, ended: int, *, stateful: bool) -> None:
    """Log how to resume from a state that was saved within a pruned, shorter epoch.

    The callback cannot see how many batches a script skips. A script that assumes that all epochs
    have one length skips too few or too many.

    Args:
        sampler: Sampler after its state was restored.
        ended: Number of epochs that were over.
        stateful: Whether the loader restores its own position.

    Examples:
        >>> say_where(InfluencePrunedSampler(range(6)), 2, stateful=False)  # not pruned: no need
    """
    if stateful or sampler.epoch_length == "constant" or len(sampler.kept) == sampler.num_samples:
        return
    logger.warning(
        "prunesampler: this state is from within epoch %d, which has %d samples where a full one has %d. "
        "If the script skips step %% len(loader) batches, it resumes at another batch. %s.",
        ended,
        len(sampler),
        sampler.length(sampler.num_samples),
        BY_LENGTH,
    )


class ResumePoint:
    """The number of ended epochs in a loaded state, until the next epoch has ended.

    If its owner is deleted before that, it logs that the state was never used.

    Args:
        owner: Object that loads the state.

    Attributes:
        ended: number of epochs that had ended in the state, or None where no state is pending.
        silent: whether to log nothing, since an epoch was trained, or a framework loaded the state
            and finds the position itself.

    Examples:
        >>> class Owner: ...
        >>> owner = Owner()
        >>> point = ResumePoint(owner)
        >>> point.ended, point.silent = 3, True
        >>> del owner  # nothing is logged
    """

    def __init__(self, owner: object) -> None:
        self.ended: int | None = None
        self.silent = False
        weakref.finalize(owner, self._say_if_unused)

    def _say_if_unused(self) -> None:
        if self.ended is not None and not self.silent:
            logger.warning(
                "prunesampler: a state after %d epochs was loaded, but no epoch was trained after "
                "that. %s.",
                self.ended,
                BY_LENGTH,
            )
