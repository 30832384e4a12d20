"""How the processes of ``torch.distributed`` meet at a call, and connect over gloo."""

from __future__ import annotations

import atexit
import os
import time
from datetime import timedelta
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
import torch.distributed as dist

from prunesampler.base.checks import warn

# Ranks reach a call at different times: rank 0 may have evaluated the model before it.
MEETING_LIMIT = timedelta(minutes=30)
MEETING_NOTICE = timedelta(minutes=1)
# Inside a call the others wait for rank 0 to solve, which may take hours.
WORK_LIMIT = timedelta(hours=12)

# Weak keys and values: a group lives until the user calls destroy_process_group, and no longer.
_gloo_groups: WeakKeyDictionary[dist.ProcessGroup, ReferenceType[dist.ProcessGroup]]
_gloo_groups = WeakKeyDictionary()


def gloo_group(rank: int, world: int) -> dist.ProcessGroup:
    """A gloo group of all ranks beside the default group, made when all ranks first ask for it.

    Raises:
        RuntimeError: If gloo is not available or cannot connect, or if some ranks do not ask.

    Examples:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> gloo_group(rank=0, world=1).size()
        1
        >>> dist.destroy_process_group()
    """
    default = dist.group.WORLD
    assert default is not None
    made = _gloo_groups.get(default, lambda: None)()
    if made is not None:
        return made
    if not dist.is_gloo_available() or dist.get_backend() == dist.Backend.MPI:
        raise RuntimeError(
            "prunesampler talks between processes over gloo, which cannot be had beside the backend "
            f"{dist.get_backend()!r} of this torch {torch.__version__}; select in one process, save "
            "the selection, and give it to sampler.restrict on all"
        )
    wait_for_all(rank, world, "prunesampler")
    try:
        group = dist.new_group(backend="gloo", timeout=WORK_LIMIT)
    except RuntimeError as error:
        raise RuntimeError(
            "the processes cannot connect over gloo, which prunesampler uses beside the training's "
            "own backend; set GLOO_SOCKET_IFNAME to the network interface between the machines"
        ) from error
    assert isinstance(group, dist.ProcessGroup)
    _gloo_groups[default] = ref(group)
    atexit.register(_leave, ref(group), os.getpid())
    return group


def _leave(group: ReferenceType[dist.ProcessGroup], process: int) -> None:
    """Destroy the group at exit, unless the user did: its threads would abort the interpreter."""
    left = group()
    if left is not None and dist.is_initialized() and os.getpid() == process:
        dist.destroy_process_group(left)


def wait_for_all(rank: int, world: int, call: str) -> None:
    """Wait until all ranks have begun as many calls as this one.

    They count their calls in the store of ``torch.distributed``. This needs no connection between
    ranks, tells every rank which ones are missing, and is undone if it fails.

    Raises:
        RuntimeError: If some ranks do not call in time.

    Examples:
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> wait_for_all(rank=0, world=1, call="select")
        >>> dist.destroy_process_group()
    """
    from torch.distributed.distributed_c10d import _get_default_store  # private, from 2.6 to 2.14

    store, began, noticed, pause = _get_default_store(), time.monotonic(), False, 0.001
    own, everyone = f"prunesampler/{rank}", "prunesampler/all"
    number = store.add(own, 1)
    store.add(everyone, 1)
    try:
        while store.add(everyone, 0) < number * world:
            waited = timedelta(seconds=time.monotonic() - began)
            if waited > MEETING_LIMIT or (waited > MEETING_NOTICE and not noticed):
                counts = [store.add(f"prunesampler/{other}", 0) for other in range(world)]
                missing = [other for other, count in enumerate(counts) if count < number]
                text = (
                    f"{call} was called on rank {rank} {waited.total_seconds():.0f} s ago, and not on "
                    f"ranks {missing}; call it on all processes, not on the main one alone"
                )
                if waited > MEETING_LIMIT:
                    raise RuntimeError(text)
                warn(f"{text}. It waits for {MEETING_LIMIT.total_seconds():.0f} s")
                noticed = True
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
    except BaseException:
        store.add(own, -1)  # as if it had not been called
        store.add(everyone, -1)
        raise
