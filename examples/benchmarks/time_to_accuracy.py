"""Faster than fewer epochs? The hardest samples of each epoch beside all data, every second counted.

    python examples/benchmarks/time_to_accuracy.py
    python examples/benchmarks/time_to_accuracy.py --images CIFAR --epochs 12 --half --json runs/tta.json --minutes 120

CIFAR holds train/CLASS/*.jpg and test/CLASS/*.jpg; without it, these are scikit-learn's digits, on which it
takes seconds and shows nothing. All rows take as many optimiser steps as --epochs on all data, but for those of other
lengths. Seconds are those of one processor core for each run, so two runs go side by side on two cores. The first runs
tell most: the learning rate of all data, then all rows with the first seed, then the other seeds. After each
run --json is written anew, and what it holds is not run again; --minutes 0 only shows what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).parents[1]))
from data import Images, digits, imagefolder
from fast import Plan, cost_of_recording, train
from results import show
from time_report import tables

from prunesampler.base.files import write_atomically
from prunesampler.train.trajectory import Trajectory

Job = dict[str, Any]
PROXIES: dict[str, Job] = {
    "proxy": {"width": 0.3, "length": 5 / 6},
    "short proxy": {"width": 0.3, "length": 1 / 2},
}
"""Width and length relative to the network's."""
HARD: Job = {"by": "proxy", "proxy": "proxy", "keep": 0.7}
OWN: Job = {"by": "own", "keep": 0.7}
MAIN: dict[str, Job] = {"all data": {}, "hardest 70 % by its own errors": OWN}
LENGTHS: dict[str, Job] = {
    f"{row}, {length:.2g} times as long": {**MAIN[row], "length": length}
    for length in (4 / 3, 2 / 3, 2, 10 / 3) for row in MAIN
}  # fmt: skip
RIVALS: dict[str, Job] = {
    "InfoBatch, 30 % dropped": {"by": "infobatch", "keep": 0.7, "last": 2},
    "hardest 70 % by a proxy": HARD,
    "random 70 %, redrawn": {"by": "random", "keep": 0.7},
    "hardest 50 % by its own errors": {**OWN, "keep": 0.5},
    "all data, mirrored by chance": {"alternate": False},
    "own errors and a balanced gradient": {"by": "balanced", "keep": 0.7},
}
VARIANTS: dict[str, Job] = {
    "own errors, last epoch on all": {**OWN, "last": 1},
    "own errors, after 3 epochs": {**OWN, "first": 3},
    "own errors, 30 % at random": {**OWN, "mix": 0.3},
    "hardest 80 % by its own errors": {**OWN, "keep": 0.8},
    "hardest 30 % by its own errors": {**OWN, "keep": 0.3},
    "by a short proxy": {**HARD, "proxy": "short proxy"},
    "hardest 50 % by a proxy": {**HARD, "keep": 0.5},
    "hardest 60 %, half as long": {**OWN, "keep": 0.6, "length": 1 / 2},
    "all data, 0.5 times as long": {"length": 1 / 2},
}
ROWS = {**MAIN, **LENGTHS, **RIVALS, **VARIANTS, **PROXIES}
PARTS = ("images", "classes", "test images", "test classes")


class Results:
    """A file of JSON that is written anew after each run; of the same settings or refused."""

    def __init__(self, path: Path, settings: Job) -> None:
        self.path, self.settings = path, settings
        self.runs: list[Job] = []
        if path.exists():
            found = json.loads(path.read_text())
            if found["settings"] != settings:
                raise SystemExit(
                    f"{path} holds runs of other settings: {found['settings']}, not {settings}; nothing was "
                    "written. Choose another --json"
                )
            self.runs = found["runs"]

    def add(self, run: Job) -> None:
        self.runs.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"settings": self.settings, "runs": self.runs}, indent=1)
        write_atomically(self.path, text.encode())

    def of(self, row: str, seed: int, rate: float | None = None) -> Job | None:
        for run in self.runs:
            if run["row"] == row and run["seed"] == seed and rate in (None, run["rate"]):
                return run
        return None

    def best_rate(self, seed: int, rates: list[float]) -> float | None:
        """Of the sweep on all data, or None before it is over."""
        found = [self.of("all data", seed, rate) for rate in rates]
        whole = [run for run in found if run]
        if len(whole) < len(rates):
            return None
        return float(max(whole, key=lambda run: run["accuracy"])["rate"])


def jobs(options: argparse.Namespace, results: Results) -> Iterator[Job]:
    """All runs, the most telling first; after the sweep all at the best rate, which is all data's."""
    first, *others = options.seeds
    for rate in options.rates:
        yield {"row": "all data", "seed": first, "rate": rate}
    # They need no rate, so a second worker has something to do.
    yield {"row": "proxy", "seed": first, "rate": 1.0}
    rate = results.best_rate(first, options.rates)
    if rate is None:
        return
    groups = [(MAIN, options.seeds), (LENGTHS, [first]), (RIVALS, [first]), (VARIANTS, [first])]
    groups += [(LENGTHS | RIVALS | VARIANTS, others)]
    for row, seed in ((row, seed) for rows, seeds in groups for seed in seeds for row in rows):
        if options.rows and row not in options.rows:
            continue
        if "proxy" in ROWS[row]:
            yield {"row": ROWS[row]["proxy"], "seed": seed, "rate": 1.0}
        yield {"row": row, "seed": seed, "rate": rate}
    # The best rate of all data need not be that of the others.
    for other in sorted({*options.rates} - {rate}):
        for row in ("hardest 70 % by its own errors", "random 70 %, redrawn"):
            yield {"row": row, "seed": first, "rate": other}


def file_of(options: argparse.Namespace, proxy: str, seed: int) -> Path:
    """The trajectory that a proxy recorded."""
    folder: Path = options.json.with_suffix("")
    return folder / f"{proxy.replace(' ', '-')}-{seed}.trajectory"


def plan_of(options: argparse.Namespace, job: Job) -> Plan:
    row = ROWS[job["row"]]
    names = ("by", "keep", "mix", "first", "last", "alternate")
    more = {name: row[name] for name in names if name in row}
    return Plan(
        epochs=max(1, round(row.get("length", 1) * options.epochs)), lr=job["rate"] * options.lr,
        width=options.width * row.get("width", 1.0), seed=job["seed"],
        batch_size=options.batch_size, half=options.half, **more,
    )  # fmt: skip


def work(options: argparse.Namespace, job: Job) -> Job:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    images, plan, proxy = load(options.images, options.cache), plan_of(options, job), None
    if plan.by == "proxy":
        proxy = Trajectory.load(file_of(options, ROWS[job["row"]]["proxy"], job["seed"]))
    run = train(images, plan, proxy)
    if job["row"] in PROXIES:
        run.trajectory.save(file_of(options, job["row"], job["seed"]))
    made = {key: value for key, value in vars(run).items() if key not in ("trajectory", "model")}
    recording = cost_of_recording(images, plan) * run.steps * plan.batch_size / len(images.train)
    return {
        **job, **made, "recording": recording, "width": plan.width, "length": plan.epochs,
        "proxy": ROWS[job["row"]].get("proxy"),
    }  # fmt: skip


def run_all(options: argparse.Namespace, results: Results) -> None:
    """Keep the workers busy until all is done; begin nothing after so many minutes."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes below
    file_of(options, "proxy", 0).parent.mkdir(parents=True, exist_ok=True)
    started, running = time.monotonic(), dict[Future[Job], Job]()
    with ProcessPoolExecutor(options.workers, get_context("spawn")) as pool:
        while True:
            late = time.monotonic() - started >= 60 * options.minutes
            for job in () if late else jobs(options, results):
                if len(running) < options.workers and may_run(job, results, running):
                    running[pool.submit(work, options, job)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                results.add(future.result())
                done = results.runs[-1]
                print(
                    f"{done['row']}, seed {done['seed']}, rate {done['rate']}: {done['accuracy']:.2%} in "
                    f"{done['seconds']:.0f} s", file=sys.stderr, flush=True,
                )  # fmt: skip


def may_run(job: Job, results: Results, running: dict[Future[Job], Job]) -> bool:
    """Whether it is to do, and the proxy that it needs is there."""
    if job in running.values() or results.of(job["row"], job["seed"], job["rate"]):
        return False
    proxy = ROWS[job["row"]].get("proxy")
    return proxy is None or results.of(proxy, job["seed"]) is not None


@cache
def load(folder: Path | None, kept: Path | None) -> Images:
    """The images; decoded only once where there is a file to keep them in."""
    if folder is None:
        return digits()
    if kept is None:
        return imagefolder(folder, 32)
    if not kept.exists():
        images = imagefolder(folder, 32)
        parts = dict(zip(PARTS, (*images.train.tensors, *images.test.tensors), strict=True))
        write_atomically(kept, save(parts))
    x, y, test_x, test_y = map(load_file(kept).__getitem__, PARTS)
    classes = int(y.max()) + 1
    return Images(TensorDataset(x, y), TensorDataset(test_x, test_y), classes, 4, True)


def arguments() -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--images", type=Path, help="folder of train/ and test/ (default: digits)")
    made.add_argument("--cache", type=Path, help="file that keeps the decoded images")
    made.add_argument("--epochs", type=int, default=12)
    made.add_argument("--width", type=float, default=0.375, help="1 is 64, 256 and 256 channels")
    made.add_argument("--lr", type=float, default=0.4)
    made.add_argument(
        "--rates", type=float, nargs="+", default=[1.0, 0.6, 1.6], help="sweep, relative to --lr"
    )
    made.add_argument("--half", action="store_true", help="compute in bfloat16")
    made.add_argument("--batch-size", type=int, help="default: 500, of digits 50")
    made.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    made.add_argument("--rows", nargs="+", choices=list(ROWS), metavar="ROW", help="only these")
    made.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after")
    made.add_argument("--workers", type=int, default=2, help="runs side by side")
    made.add_argument("--json", type=Path, default=Path("runs/time_to_accuracy.json"))
    options = made.parse_args()
    options.batch_size = options.batch_size or (500 if options.images else 50)
    return options


def main() -> None:
    options = arguments()
    settings = {
        "images": options.images.name if options.images else "digits", "epochs": options.epochs,
        "width": options.width, "lr": options.lr, "batch_size": options.batch_size,
        "half": options.half,
    }  # fmt: skip
    results = Results(options.json, settings)
    if options.minutes > 0:
        run_all(options, results)
    show(*tables(results.runs, list(ROWS), results.best_rate(options.seeds[0], options.rates)))


if __name__ == "__main__":
    main()
