"""Jobs in plain PyTorch about the processes themselves; this file runs those of jobs.py too."""

from __future__ import annotations

import os
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from unittest.mock import Mock, patch

import jobs
import torch
import torch.distributed as dist
from job_runner import FOLDER, RANK, WORLD, main
from jobs import data, failure, network, pruner, quick
from torch import nn

from prunesampler.base.processes import current_group
from prunesampler.measure.isolation import untouched


def gathered():
    """Rows of many types, of ranks with different numbers of them, in pieces of a few rows."""
    group, found = current_group(), {}
    places = [torch.arange(rank, 7 + 5 * WORLD, WORLD + 1) for rank in range(WORLD)]
    places[-1] = torch.tensor(
        sorted(set(range(7 + 5 * WORLD)) - set(torch.cat(places[:-1]).tolist()))
    )
    numbers = torch.randn(7 + 5 * WORLD, 3, 2)
    for dtype in (
        torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.bool, torch.int64,
        torch.complex64,
    ):  # fmt: skip
        for whole in ((4 * numbers).to(dtype), (4 * numbers[:, 0, 0]).to(dtype), numbers[:, :0]):
            with patch("prunesampler.base.processes.PIECE", 50):
                together = group.gather(whole[places[RANK]], places)
            here = together is not None and torch.equal(together, whole)
            found[f"{dtype} {tuple(whole.shape)}"] = here if RANK == 0 else together is None
    return {"found": found}


def no_room():
    """Rank 0 has no memory for all rows."""
    rows = torch.ones(1, 1).expand(2, 2**50)
    places = [torch.arange(2) + 2 * rank for rank in range(WORLD)]
    return {"error": failure(lambda: current_group().gather(rows, places))}


def stored():
    """Every rank's measurements on a disk, and on rank 0 those of all, as small as they are."""
    from prunesampler.base import memory

    options = {"ON_DISK": 0, "TemporaryFile": Mock(wraps=memory.TemporaryFile)}
    with patch.multiple(memory, **options):
        selection = pruner(data(), storage=FOLDER).select(network())
    return {
        "kept": selection.kept.tolist(),
        "shift": selection.shift,
        "files": options["TemporaryFile"].call_count
        - 1,  # the first finds out whether one can write
        "left": [path.name for path in FOLDER.iterdir()],
    }


@contextmanager
def another_group(backend="gloo", **options):
    """Another default process group inside, from a store of its own; then again one as at first."""
    for number, (name, chosen) in enumerate([(backend, options), ("gloo", {})]):
        current_group().raise_together(None)  # all are here, whatever the default group can carry
        dist.destroy_process_group()
        store = dist.FileStore(str(FOLDER / f"store {number}"), WORLD)
        dist.init_process_group(name, store=store, rank=RANK, world_size=WORLD, **chosen)
        if number == 0:
            yield


def slow_solver():
    """Rank 0 solves for longer than the default group waits."""

    def slow(*arguments, **options):
        time.sleep(6)
        return quick(*arguments, **options)

    with another_group(timeout=timedelta(seconds=3)):
        kept = pruner(data(), solver=slow).select(network()).kept.tolist()
    return {"kept": kept}


def device_only():
    """A default group that cannot carry tensors on the CPU, as NCCL's."""
    with another_group("cuda:gloo"):
        kept = pruner(data()).select(network()).kept.tolist()
        return {"kept": kept, "refused": failure(lambda: dist.all_reduce(torch.ones(1)))}


def groups_made():
    """Process groups that are made by questions, by two selections, and after leaving the one."""
    from prunesampler.base import meeting

    made = []
    with another_group(), patch.object(dist, "new_group", wraps=dist.new_group) as new_group:
        for work in (
            lambda: (current_group().rank, current_group().world),
            lambda: pruner(data()).select(network()),
            lambda: pruner(data()).select(network()),
            lambda: [meeting._leave(group, os.getpid()) for group in meeting._gloo_groups.values()],
            lambda: pruner(data()).select(network()),
        ):
            work()
            made.append(new_group.call_count)
    return {"made": made}


def on_the_main_process_alone():
    """What people write under accelerate; afterwards a call on all works."""
    from prunesampler.base import meeting

    chooser, errors = pruner(data()), []
    short = {"MEETING_LIMIT": timedelta(seconds=1), "MEETING_NOTICE": timedelta(seconds=0.3)}
    with (
        another_group(),
        patch.multiple(meeting, **short),
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        for work in (
            lambda: chooser.frontier(network(), [0.4]),
            lambda: current_group().check_equal("what nobody met for", b""),
        ):
            errors.append("none" if RANK else failure(work))
            dist.barrier()
        kept = chooser.select(network()).kept.tolist()
    return {"errors": errors, "seen": [str(warning.message) for warning in seen], "kept": kept}


def other_calls():
    return {"error": failure(lambda: current_group().meet(f"call {RANK}"))}


class Buffers(nn.Module):
    """Buffers that repeat their numbers, hold few of them, or of which numbers are not equal."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)
        self.register_buffer("repeated", torch.arange(5.0).expand(3, 5) + 0)
        self.repeated = (torch.arange(5.0) + RANK).expand(3, 5)
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("nothing", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T + RANK)
        self.register_buffer("complex", torch.ones(2, dtype=torch.complex64).conj() * 1j)
        self.register_buffer("count", torch.tensor(RANK))

    def forward(self, x):
        return self.head(x)


def buffers():
    """Every rank sees rank 0's, and has its own again."""
    torch.manual_seed(0)
    model = Buffers()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with untouched(model, current_group().broadcast):
        inside = [model.repeated.tolist(), model.turned.tolist(), int(model.count)]
        model.count += 5
    pruner(data()).select(model)
    after = dict(model.named_buffers())
    whole = [name for name in before if name != "sparse"]
    same = all(torch.allclose(before[name], after[name], equal_nan=True) for name in whole)
    return {
        "inside": inside,
        "same": same and torch.equal(after["sparse"].to_dense(), torch.eye(3)),
    }


def sharded():
    """Models whose ranks hold parts of the parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    wrapped = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    mesh, split = init_device_mesh("cpu", (WORLD,)), network()
    fully_shard(split, mesh=mesh)
    chooser = pruner(data())
    return {"errors": [failure(partial(chooser.select, model)) for model in (wrapped, split)]}


if __name__ == "__main__":
    if WORLD > 1:
        dist.init_process_group("gloo")
    main({**vars(jobs), **globals()})
