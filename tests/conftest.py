"""Shared data and helpers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

settings.register_profile("untimed", deadline=None)  # a busy machine is no bug
settings.load_profile("untimed")

torch.set_num_threads(1)  # tests run side by side

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def digits() -> TensorDataset:
    """All 1,797 digits, pixels / 16."""
    x, y = load_digits(return_X_y=True)
    return TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))


@pytest.fixture
def few_digits(digits: TensorDataset) -> TensorDataset:
    """The first 200 digits."""
    return TensorDataset(*digits[:200])


@pytest.fixture
def model() -> nn.Sequential:
    """A small network with everything that scoring could disturb: dropout and batch norm."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )


# What an interpreter says that goes down while one of gloo's threads still lets go of a tensor; they outlive
# the process group as long as a DDP model is there (pytorch/pytorch#179291). On a busy machine it was 1
# run in 36 of a script that resumed at its end and selected nothing.
GLOO_ABORTED = "terminate called without an active exception"


def run_python(*arguments: str | Path, processes: int = 1, **environment: str) -> str:
    """Run a script, under torchrun if on several processes; return what it printed.

    Run it again if all that failed on several was PyTorch's own leaving.
    """
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        start += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    for _ in range(2):
        done = subprocess.run(
            [*start, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, timeout=280,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment}, check=False,
        )  # fmt: skip
        if processes == 1 or GLOO_ABORTED not in done.stderr:
            break
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_job(file: str, name: str, processes: int, **environment: str) -> list[dict[str, Any]]:
    """Run a job of a file beside this one; what each rank returned, by rank."""
    output = run_python(ROOT / "tests" / file, name, processes=processes, **environment)
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"rank"')]
    ranks = sorted(lines, key=lambda line: line["rank"])
    assert [line["rank"] for line in ranks] == list(range(processes))
    assert all(line["world"] == processes for line in ranks)
    return ranks
