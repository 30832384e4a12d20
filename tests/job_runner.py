"""What the tests run on one process and on several: ``python FILE NAME ...``, or under torchrun.

Every rank writes one line of JSON for every job: what the job returned, or the error that it raised.
"""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
# Of the one job; of several each has its own in FOLDERS, which `prepare` sets in the job's module.
FOLDER = Path(os.environ.get("FOLDER", "."))
FOLDERS = os.environ.get("FOLDERS")
RESULTS = os.environ.get("RESULTS")  # a folder; long lines of several ranks would mix on the screen


def main(jobs):
    for part in ("nobody iterated", "ran in the order", "is sized for", "fewer than a batch"):
        warnings.filterwarnings("error", f".*{part}")  # our own warnings, whatever others say
    for name in sys.argv[1:]:
        prepare(jobs[name])
        line = {"rank": RANK, "world": WORLD, "job": name}
        try:
            line["result"] = jobs[name]()
            assert (dist.get_world_size() if dist.is_initialized() else 1) == WORLD
        except Exception:
            line["error"] = traceback.format_exc()
        write(json.dumps(line))
        if WORLD > 1 and "error" in line:
            os._exit(1)  # the others may wait for what this rank did not do; nothing helps them
        if dist.is_initialized():
            dist.barrier()
    if dist.is_initialized():
        dist.destroy_process_group()
    # gloo's threads may still be ending, and would abort an interpreter that shuts down meanwhile.
    os._exit(0)


def prepare(job):
    """Nothing of the jobs before is left, and the job has its folder."""
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    forget_accelerate()
    if FOLDERS is not None:
        folder = Path(FOLDERS) / job.__name__
        folder.mkdir(parents=True, exist_ok=True)
        job.__globals__["FOLDER"] = folder


def write(line):
    if RESULTS is None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    else:
        with (Path(RESULTS) / f"{RANK}.jsonl").open("a") as file:
            file.write(f"{line}\n")


def forget_accelerate():
    """The next Accelerator is the first one, as in a new process."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
