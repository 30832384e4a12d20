"""What it takes to select with heads of ordinary and of large size, and how small the shift becomes.

    python examples/benchmarks/engine.py
    python examples/benchmarks/engine.py --cases 1000,2048,1281167 --spread 3 --damping 1e-4
    python examples/benchmarks/engine.py --features FEATURES.safetensors
    python examples/benchmarks/engine.py --images CIFAR_FOLDER

Each case is a head of C classes on d features of n samples: synthetic features with the spectrum and the
confidences of a real network, given features, or those of a small network trained on CIFAR-10 in 100
classes. Ways to choose 40 % of the samples, among them random ones: a share in each class, Kronecker
factors with annealing, what is chosen by default, and with ten times the moves. Shares are of a random
set's shift, to first order with the exact curvature, in the parameters and in units of the loss. Seconds
are those of this machine, processor time of all threads and wall-clock. Beside them the share that no set
would go below if gradients followed a normal law, see `engine_floor.py`. Prints a table; --json a file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from engine_data import given, small_network, synthetic
from engine_floor import Floor
from overhead import PeakMemory
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prunesampler import AutoCurvature, Budget, Influence, KroneckerCurvature, anneal
from prunesampler.base.memory import Room
from prunesampler.influence.certificate import newton_shift
from prunesampler.influence.factorised import Factorised
from prunesampler.influence.measurements import Measurements

Row = dict[str, Any]
AFFORDABLE = 5e9
"""Numbers n C D up to which one product with the curvature, and so the floor, is quick."""


class Watch:
    """Processor and wall-clock seconds while inside."""

    def __enter__(self) -> Watch:
        self._started = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.processor = round(time.process_time() - self._started[0], 2)
        self.wall = round(time.perf_counter() - self._started[1], 2)


def default_moves(influence: Influence) -> int:
    """Moves that make the search ten times as long as by default, roughly."""
    return 200 * len(influence)


def class_share(labels: Tensor, budget: Budget, seed: int) -> Tensor:
    """A random set with the same share of every class."""
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(labels))
    ordered = shuffled[np.argsort(labels.numpy()[shuffled], kind="stable")]
    every = np.linspace(0, len(labels) - 1, budget.count_of(len(labels))).astype(int)
    return torch.from_numpy(np.sort(ordered[every]))


class Judge:
    """Shares of a random set's shift, with the exact curvature."""

    def __init__(self, influence: Influence, budget: Budget) -> None:
        n = len(influence)
        self.influence = influence
        drawn = np.random.default_rng(1).choice(n, budget.count_of(n), replace=False)
        self.random = self.norms(torch.from_numpy(np.sort(drawn)))

    def norms(self, pruned: Tensor) -> tuple[float, float]:
        """Norm of the first-order shift, in the parameters and in units of the loss."""
        shift = self.influence.shift(pruned)
        gradient = self.influence.gradient_sum(pruned) / (len(self.influence) - len(pruned))
        return float(shift.norm()), math.sqrt(max(0.0, float((shift * gradient).sum())))

    def shares(self, pruned: Tensor) -> tuple[float, float]:
        """The same as shares of the random set's."""
        own = self.norms(pruned)
        return own[0] / self.random[0], own[1] / self.random[1]


def chosen(
    influence: Influence, budget: Budget, labels: Tensor | None, moves: int | None
) -> Tensor:
    """Anneal, without the norm of the answer that the solver reports, which the judge computes."""
    return anneal(influence, budget, labels=labels, moves=moves).pruned


def bound(name: str, measured: Measurements, factorised: Factorised, budget: Budget) -> list[Row]:
    """One row for what no set would go below, were gradients normal; none where that takes long."""
    if len(measured) * math.prod(measured.shape) > AFFORDABLE:
        return []
    with Watch() as watch:
        floor = Floor(measured, factorised.damping, budget.count_of(len(measured)))
        shares = {"parameters": floor.share(2), "loss": floor.share(1)}
    way = "lower bound, were gradients normal"
    return [{"case": name, "way": way, **shares, "seconds": watch.processor, "wall": watch.wall}]


def newton_norm(
    measured: Measurements, influence: Influence, pruned: Tensor, curvature: AutoCurvature
) -> float:
    """Norm of the shift with the curvature of the kept samples."""
    kept = torch.ones(len(measured), dtype=torch.bool)
    kept[pruned] = False
    left = measured.subset(kept.nonzero().flatten())
    again = curvature.refactorise(left, influence.factorised)
    return influence.norm(newton_shift(again, influence, pruned))


def compare(
    name: str, measured: Measurements, damping: float, budget: Budget, beside: bool
) -> list[Row]:
    """One row for every way to choose."""
    labels, n = measured.labels, len(measured)
    assert labels is not None
    curvature = AutoCurvature(damping=damping)
    with Watch() as making:
        factorised = curvature.factorise(measured)
    with Watch() as whitening:
        influence = Influence.build(measured.rows(), factorised)
    judge = Judge(influence, budget)
    rows: list[Row] = []

    def add(way: str, pruned: Tensor, watch: Watch | None, **more: Any) -> None:
        parameters, loss = judge.shares(pruned)
        seconds = {"seconds": watch.processor, "wall": watch.wall} if watch else {}
        rows.append(
            {"case": name, "way": way, "parameters": parameters, "loss": loss, **seconds, **more}
        )

    add("a share in each class, random", class_share(labels, budget, 0), None)
    rows += bound(name, measured, factorised, budget)
    if beside:
        with Watch() as kronecker:
            other = KroneckerCurvature(damping=damping).factorise(measured)
            pruned = chosen(Influence.build(measured.rows(), other), budget, labels, None)
        add("Kronecker factors, annealing", pruned, kronecker)
    for way, moves in (("default", None), ("200 moves a sample", default_moves(influence))):
        if moves is not None and not beside:
            continue
        with Watch() as search:
            pruned = chosen(influence, budget, labels, moves)
        search.processor = round(search.processor + making.processor + whitening.processor, 2)
        search.wall = round(search.wall + making.wall + whitening.wall, 2)
        if moves is None:
            with Watch() as certificate:
                newton = newton_norm(measured, influence, pruned, curvature)
            facts = {
                "curvature_seconds": making.processor, "rows_seconds": whitening.processor,
                "newton": newton / judge.random[0], "newton_seconds": certificate.processor,
                "kind": type(factorised).__name__, "damping": factorised.damping,
                "residual": max(getattr(factorised, "residuals", [0.0])),
                "samples_per_parameter": n / measured.parameters,
            }  # fmt: skip
            add(way, pruned, search, **facts)
        else:
            add(way, pruned, search)
    return rows


def warm_up() -> None:
    """Compile the loops, on a few samples."""
    for outputs in (10, 300):
        few = synthetic(outputs, 40, 600, 0, 1.5, Room())
        for curvature in (AutoCurvature(damping=1e-3), KroneckerCurvature(damping=1e-3)):
            if outputs == 10 or isinstance(curvature, AutoCurvature):
                factorised: Factorised = curvature.factorise(few)
                anneal(Influence.build(few.rows(), factorised), Budget(count=200), moves=2000)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["10,64,50000", "10,512,50000", "100,64,50000", "100,512,50000"]
    parser.add_argument("--cases", nargs="*", default=cases)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--damping", type=float, default=5e-4)
    parser.add_argument("--spread", type=float, default=3.0)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--fraction", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--default-only", action="store_true")
    parser.add_argument("--storage", type=Path, help="folder for features and measurements")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def makers(options: argparse.Namespace) -> list[tuple[str, Callable[[], Measurements]]]:
    """The cases by name, each made when it is its turn."""
    found: list[tuple[str, Callable[[], Measurements]]] = []
    if options.features:
        found.append(("given features", lambda: given(options.features, options.damping)))
    if options.images:
        network = options.images, 512, options.epochs, options.seed
        found.append(("small network", lambda: small_network(*network)))
    room = Room(options.storage)
    for case in [] if found else options.cases:
        sizes = [int(part) for part in case.split(",")]
        more = options.seed, options.spread, room
        name = "C {}, d {}, n {}".format(*sizes)
        found.append((name, lambda s=sizes, more=more: synthetic(*s, *more)))
    return found


def show(rows: list[Row]) -> None:
    table = Table("case", "way", "parameters", "loss", "processor s", "wall s", "peak GiB")
    for row in rows:
        shares = f"{row['parameters']:.4f}", f"{row['loss']:.4f}"
        facts = str(row.get("seconds", "")), str(row.get("wall", "")), str(row["peak_gib"])
        table.add_row(row["case"], row["way"], *shares, *facts)
    Console(width=120).print(table)


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    budget, beside = Budget(fraction=options.fraction), not options.default_only
    warm_up()
    rows: list[Row] = []
    for name, make in makers(options):
        started = time.perf_counter()
        measured = make()
        print(f"{name}: measurements made in {time.perf_counter() - started:.0f} s", flush=True)
        held = psutil.Process().memory_info().rss / 2**30
        with PeakMemory() as memory:
            found = compare(name, measured, options.damping, budget, beside)
        peak = held + memory.peak / 2**30
        for row in found:
            row |= {"measurements_gib": round(held, 2), "peak_gib": round(peak, 2)}
        rows += found
        del measured
    show(rows)
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    text = json.dumps({"settings": settings, "rows": rows}, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
