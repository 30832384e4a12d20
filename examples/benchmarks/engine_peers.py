"""The inverse curvature of a head, by this package and by published libraries, on the same features.

    pip install curvlinops-for-pytorch==3.0.1 dattri==0.3.0 kronfluence==1.0.1
    python examples/benchmarks/engine_peers.py
    python examples/benchmarks/engine_peers.py --cases 100,512,50000 --ways prunesampler curvlinops

The job begins with a trained head, its features and labels, and a random set of 40 % of the samples. Wanted is
``H^-1 g``, with the set's centred gradients added up to g and H the Gauss-Newton matrix with its damping; then
``g_i^T H^-1 g_i`` of every sample, where a library hands it out. Seconds are of processor time, from the
features to the answer, without imports; the second job goes on from the first. Errors are relative: that of
``H^-1 g`` as a whole, and the median of single samples. They are taken against a dense matrix in float64
where parameters are few, else against conjugate gradients to a residual of 1e-6. Every attempt has a process of
its own, with limits of time and memory. Prints a table; --json a file.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_data import fitted, measured, synthetic
from engine_solvers import (
    CurvlinopsGradients,
    CurvlinopsKronecker,
    Dattri,
    Kronfluence,
    Problem,
    Prunesampler,
    Solver,
)
from overhead import PeakMemory
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import Tensor

from prunesampler import AutoCurvature, BlockCurvature, KroneckerCurvature
from prunesampler.base.memory import Room
from prunesampler.influence.conjugate import conjugate_gradients

LIBRARIES = "curvlinops-for-pytorch", "dattri", "kronfluence"
PRELOADED = ["torchvision", "prunesampler", "curvlinops", "dattri.algorithm", "kronfluence"]
"""Imported once, from where the processes of all attempts begin; what is not installed is left out."""
DENSE, SHORT = 2000, 5.0
"""Parameters up to which the reference is dense, and seconds below which an attempt is made three times."""

WAYS: dict[str, Callable[[], Solver]] = {
    "prunesampler, default": lambda: Prunesampler(AutoCurvature),
    "prunesampler, Kronecker factors": lambda: Prunesampler(KroneckerCurvature),
    "curvlinops, CG": CurvlinopsGradients,
    "curvlinops, CG guided by KFAC": lambda: CurvlinopsGradients(
        CurvlinopsKronecker(lambda library: library.KFACLinearOperator)
    ),
    "curvlinops, KFAC": lambda: CurvlinopsKronecker(lambda library: library.KFACLinearOperator),
    "curvlinops, EK-FAC": lambda: CurvlinopsKronecker(lambda library: library.EKFACLinearOperator),
    "dattri, explicit": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorExplicit(
            task, regularization=problem.damping
        )
    ),
    "dattri, CG, 10 steps (default)": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorCG(task, regularization=problem.damping)
    ),
    "dattri, CG, 100 steps": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorCG(
            task, max_iter=100, regularization=problem.damping
        )
    ),
    "dattri, CG, 300 steps": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorCG(
            task, max_iter=300, regularization=problem.damping
        )
    ),
    "dattri, LiSSA": lambda: Dattri(lissa),
    "dattri, DataInf": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorDataInf(
            task, regularization=problem.damping
        )
    ),
    "dattri, EK-FAC": lambda: Dattri(
        lambda library, task, problem: library.IFAttributorEKFAC(task, damping=problem.damping),
        each=True,
    ),
    "kronfluence, EK-FAC": Kronfluence,
}


def lissa(library: Any, task: Any, problem: Problem) -> Any:
    """LiSSA, scaled by the largest curvature that a sample can have, so that it does not diverge."""
    scaling = float(problem.inputs.square().sum(1).max()) / 2
    return library.IFAttributorLiSSA(task, scaling=scaling, damping=problem.damping / scaling)


def make(sizes: tuple[int, int, int], options: argparse.Namespace, path: Path) -> None:
    """Train the head, and save it with a set and with the right answers."""
    torch.set_num_threads(options.threads)
    held = synthetic(*sizes, options.seed, options.spread, Room())
    assert held.labels is not None
    inputs = held.inputs.float()
    draw = np.random.default_rng(options.seed)
    pruned = np.sort(draw.choice(len(held), int(options.fraction * len(held)), replace=False))
    problem = Problem(
        inputs,
        held.labels,
        fitted(inputs, held.labels, sizes[0], options.seed),
        torch.from_numpy(pruned),
        options.damping,
    )
    shift, own = (dense if problem.weights.numel() <= DENSE else iterated)(problem, options.checked)
    tensors = {"shift": shift, "own": own}
    for name in ("inputs", "labels", "weights", "pruned"):
        tensors[name] = getattr(problem, name)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def dense(problem: Problem, checked: int) -> tuple[Tensor, Tensor]:
    """The answers by one matrix in float64, from the formula of the softmax's curvature."""
    inputs, weights = problem.inputs.double(), problem.weights.double()
    chances = (inputs @ weights.T).softmax(1)
    delta = chances.clone()
    delta[torch.arange(len(delta)), problem.labels] -= 1.0
    (outputs, width), n = weights.shape, len(delta)
    matrix = torch.empty(outputs, width, outputs, width, dtype=torch.float64)
    for one in range(outputs):
        for other in range(outputs):
            weight = chances[:, one] * (float(one == other) - chances[:, other])
            matrix[one, :, other] = inputs.T @ (inputs * weight[:, None]) / n
    matrix = matrix.view(outputs * width, -1)
    matrix.diagonal().add_(problem.damping)
    total = delta[problem.pruned].T @ inputs[problem.pruned]
    total -= len(problem.pruned) / n * (delta.T @ inputs)
    each = (delta[:checked, :, None] * inputs[:checked, None]).flatten(1)
    solved = torch.linalg.solve(matrix, torch.cat([total.flatten()[None], each]).T).T
    return solved[0].view(outputs, width), (solved[1:] * each).sum(1)


def iterated(problem: Problem, checked: int) -> tuple[Tensor, Tensor]:
    """The answers by conjugate gradients to a residual of 1e-6."""
    held = measured(problem.inputs, problem.labels, problem.weights, Room())
    rows, curved = held.rows(), BlockCurvature(damping=problem.damping).factorise(held)
    total = rows.sum(problem.pruned) - len(problem.pruned) / len(held) * rows.sum()
    each = rows[:checked].flat().double().view(-1, *held.shape)
    solved = [
        conjugate_gradients(curved.multiply, one, curved.near.apply_inverse, tolerance=1e-6)[0]
        for one in [total, *each]
    ]
    own = torch.stack([(a * b).sum() for a, b in zip(each, solved[1:], strict=True)])
    return held.hessian.expand(solved[0]), own


def attempt(way: str, options: argparse.Namespace, path: Path, found: Connection) -> None:
    """Do both jobs in this process, and send what is known after each."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    limit = int(options.gib * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    held, problem = load_file(path), Problem.load(path, options.damping)
    row: dict[str, Any] = {}
    try:
        seconds, own_seconds = [], []
        with PeakMemory() as memory:
            while not seconds or (len(seconds) < 3 and seconds[0] + sum(own_seconds) < SHORT):
                solver = WAYS[way]()
                started = time.process_time()
                shift = solver.shift(problem)
                seconds.append(time.process_time() - started)
                error = float((shift - held["shift"]).norm() / held["shift"].norm())
                row |= {"seconds": statistics.median(seconds), "error": error}
                found.send(row)
                started = time.process_time()
                own = solver.own(problem)
                own_seconds.append(time.process_time() - started)
                if own is not None:
                    apart = (own[: options.checked] - held["own"]).abs() / held["own"]
                    row |= {
                        "own_seconds": statistics.median(own_seconds),
                        "own_error": float(apart.median()),
                    }
        row |= {"peak_gib": memory.peak / 2**30, "repeats": len(seconds)}
    except ModuleNotFoundError:
        row["failed"] = f"needs: pip install {' '.join(LIBRARIES)}"
    except (RuntimeError, MemoryError) as failure:
        lack = isinstance(failure, MemoryError) or "memory" in str(failure)
        row["failed"] = f"more than {options.gib:g} GiB" if lack else str(failure).splitlines()[0]
    found.send(row | {"done": True})


def attempted(way: str, options: argparse.Namespace, path: Path) -> dict[str, Any]:
    """What a process of its own sends before the limit of time is over."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(way, options, path, sender))
    process.start()
    sender.close()
    end, row = time.monotonic() + options.limit, {}
    try:
        while not row.get("done") and receiver.poll(max(0.0, end - time.monotonic())):
            row = receiver.recv()
    except EOFError:
        row["failed"] = "the process died"
    else:
        if not row.pop("done", False):
            row["failed"] = f"more than {options.limit:g} s"
    process.kill()
    process.join()
    return row


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table("case", "way", "seconds", "error", "each, s", "its error", "peak GiB", "")
    names = "seconds", "error", "own_seconds", "own_error", "peak_gib"
    for row in rows:
        cells = [f"{row[name]:.2g}" if name in row else "" for name in names]
        table.add_row(row["case"], row["way"], *cells, row.get("failed", ""))
    Console(width=150).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="*", default=["10,64,10000", "100,128,10000"])
    parser.add_argument("--ways", nargs="*", default=[""], help="how the names of the ways begin")
    parser.add_argument("--damping", type=float, default=5e-4)
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--fraction", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checked", type=int, default=64, help="single samples that are compared")
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of each attempt")
    parser.add_argument("--gib", type=float, default=6.0, help="memory of each attempt")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        sizes = tuple(int(part) for part in case.split(","))
        name = "C {}, d {}, n {}".format(*sizes)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "problem.safetensors"
            making = multiprocessing.get_context("forkserver").Process(
                target=make, args=(sizes, options, path)
            )
            making.start()
            making.join()
            if making.exitcode:
                raise SystemExit(f"{name}: the problem could not be made; see above")
            for way in WAYS:
                if way.startswith(tuple(options.ways)):
                    rows.append({"case": name, "way": way} | attempted(way, options, path))
                    print(json.dumps(rows[-1]), flush=True)
    show(rows)
    versions = {}
    for library in ("torch", *LIBRARIES):
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            versions[library] = "not installed"
    settings = {name: value for name, value in vars(options).items() if name != "json"}
    text = json.dumps({"settings": settings, "versions": versions, "rows": rows}, indent=1)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
