"""Shared data and helpers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from filelock import FileLock
from hostile import HOSTILE
from hypothesis import settings
from job_runner import forget_accelerate
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset, TensorDataset

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


@pytest.fixture(params=HOSTILE)
def hostile_dataset(request: pytest.FixtureRequest, tmp_path: Path) -> Dataset[Any]:
    """Each kind of dataset that was read wrongly once: 120 rows, 3 classes."""
    x = torch.randn(120, 8, generator=torch.Generator().manual_seed(0))
    x.numpy().tofile(tmp_path / "rows")
    return HOSTILE[request.param](tmp_path / "rows", x, torch.arange(120) % 3)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what needs CUDA where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


# What an interpreter says that goes down while one of gloo's threads still lets go of a tensor; they outlive
# the process group as long as a DDP model is there (pytorch/pytorch#179291). On a busy machine it was 1
# run in 36 of a script that resumed at its end and selected nothing.
GLOO_ABORTED = "terminate called without an active exception"


LIMIT = 240  # seconds for a launch; pytest's own comes later, and would leave processes behind


@pytest.fixture(autouse=True)
def _no_accelerator_is_left() -> Iterator[None]:
    """An Accelerator of one test is none of the next."""
    yield
    forget_accelerate()


@pytest.fixture(scope="session", autouse=True)
def _shared_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all of xdist's workers, where `Jobs` keeps what it found."""
    own = tmp_path_factory.getbasetemp()
    Jobs.folder = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def launch(
    *arguments: str | Path, processes: int = 1, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a script, under torchrun if on several processes.

    Run it again if all that failed on several was PyTorch's own leaving.
    """
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}"]
        start += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    command = [*start, *map(str, arguments)]
    for _ in range(2):
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        ) as process:  # fmt: skip
            try:
                output, errors = process.communicate(timeout=LIMIT)
            except subprocess.TimeoutExpired:
                process.terminate()  # not kill: torchrun then ends what it started
                output, errors = process.communicate()
                errors += f"\nended after {LIMIT} seconds"
        if processes == 1 or GLOO_ABORTED not in errors:
            break
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_python(*arguments: str | Path, processes: int = 1, **environment: str) -> str:
    """Run a script, under torchrun if on several processes; return what it printed."""
    done = launch(*arguments, processes=processes, **environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def run_jobs(
    file: str, names: list[str], processes: int, **environment: str
) -> dict[str, dict[str, Any]]:
    """Run jobs of a file beside this one, one after another in the same processes.

    Returns:
        For every job ``{"ranks": [what each rank returned]}`` or ``{"error": why it failed}``. Jobs
        that did not have their turn, because one before them ended the processes, are missing.
    """
    with TemporaryDirectory() as folder:
        script = ROOT / "tests" / file
        done = launch(script, *names, processes=processes, **environment, RESULTS=folder)
        lines = [
            json.loads(line)
            for rank in range(processes)
            if (path := Path(folder) / f"{rank}.jsonl").exists()
            for line in path.read_text().splitlines()
        ]
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        ranks = [line for line in lines if line["job"] == name]
        errors = [f"rank {line['rank']}: {line['error']}" for line in ranks if "error" in line]
        if len(ranks) == processes and not errors:
            assert all(line["world"] == processes for line in ranks)
            found[name] = {"ranks": [{"rank": k["rank"], **k["result"]} for k in ranks]}
            continue
        printed = f"{done.stdout}\n{done.stderr}"
        found[name] = {"error": "\n".join([f"{name} on {processes} failed", *errors, printed])}
        if processes > 1 or not errors:
            break
    return found


def run_job(file: str, name: str, processes: int, **environment: str) -> list[dict[str, Any]]:
    """Run one job of a file beside this one; what each rank returned, by rank."""
    found = run_jobs(file, [name], processes, **environment)[name]
    assert "ranks" in found, found["error"]
    return found["ranks"]


class Jobs:
    """The jobs of a file that a test module needs, in one launch per number of processes.

    Python and torch take seconds to start. Who asks first, among all of xdist's workers, runs them
    all; the others wait and read. Every job has a folder of its own.

    Args:
        file: beside this one.
        names: of the jobs, by number of processes.
    """

    folder: Path  # of this run of the tests

    def __init__(self, file: str, names: Mapping[int, list[str]]) -> None:
        self._file, self._names = file, names

    def __call__(self, name: str, processes: int) -> list[dict[str, Any]]:
        """What each rank returned, by rank."""
        names = self._names[processes]
        assert name in names, f"{name} is not among the jobs for {processes}: {names}"
        path = self.folder / f"{self._file} on {processes}.json"
        with FileLock(f"{path}.lock"):
            found = json.loads(path.read_text()) if path.exists() else {}
            while name not in found:
                left = [other for other in names if other not in found]
                folders = self.folder / f"{self._file} on {processes}"
                found |= run_jobs(self._file, left, processes, FOLDERS=str(folders))
                path.write_text(json.dumps(found))
        assert "ranks" in found[name], found[name]["error"]
        return found[name]["ranks"]
