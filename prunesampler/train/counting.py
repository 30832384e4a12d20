"""Whether a loop counts its epochs and shares out its samples as the callback takes it to."""

from __future__ import annotations

import logging
import sys

from prunesampler.base.checks import warn, whole_number
from prunesampler.base.processes import current_group
from prunesampler.sampling.sampler import InfluencePrunedSampler

logger = logging.getLogger("prunesampler")

BY_LENGTH = (
    "A script that finds its place as step // len(loader) needs "
    'InfluencePrunedSampler(..., epoch_length="constant"), since pruned epochs are shorter'
)


def check_epoch(epoch: int, ended: int, *, loaded: bool, restored: bool) -> None:
    """Check that an epoch which ended is the one after the last that did.

    Args:
        epoch: that ended, as the loop counts.
        ended: the last one whose end was seen, -1 before any.
        loaded: whether that is known from a state, and no epoch has ended since.
        restored: whether at least the sampler knows from a state where the run is.

    Raises:
        ValueError: when the loop counts from 1, calls more than once an epoch, or resumes elsewhere.
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


def check_sharing(sampler: InfluencePrunedSampler) -> None:
    """Warn when several processes do not share out the samples, or accelerate does unknown to us."""
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
    """Say how to find the place of a state that was saved within a pruned, shorter epoch.

    Nobody can see from outside how many batches a script skips, and a script that takes all epochs to
    be as long as this one skips too few or too many.

    Args:
        sampler: as it was restored.
        ended: epochs that were over.
        stateful: whether the loader itself knows its place.
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


def say_if_unused(loaded: list[int]) -> None:
    """Say that a state was loaded for nothing, when its callback goes.

    Args:
        loaded: how many epochs had ended in a state after which no epoch was trained, and whether a
            framework loaded it, which knows its place; or nothing.
    """
    if loaded and not loaded[1]:
        logger.warning(
            "prunesampler: a state after %d epochs was loaded, but no epoch was trained after that. %s.",
            loaded[0],
            BY_LENGTH,
        )
