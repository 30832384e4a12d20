"""What the tests run on one process and on several: ``python FILE NAME``, or under torchrun.

Every rank prints one line of JSON: its rank and what the job returned.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch.distributed as dist

WORLD = int(os.environ.get("WORLD_SIZE", "1"))
RANK = int(os.environ.get("RANK", "0"))
FOLDER = Path(os.environ.get("FOLDER", "."))


def main(jobs):
    for part in ("nobody iterated", "ran in the order", "is sized for", "fewer than a batch"):
        warnings.filterwarnings("error", f".*{part}")  # our own warnings, whatever others say
    result = jobs[sys.argv[1]]()
    assert (dist.get_world_size() if dist.is_initialized() else 1) == WORLD
    sys.stdout.write("\n" + json.dumps({"rank": RANK, "world": WORLD, **result}) + "\n")
    sys.stdout.flush()
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
    # gloo's threads may still be ending, and would abort an interpreter that shuts down meanwhile.
    os._exit(0)
