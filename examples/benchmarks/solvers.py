"""How small a shift each solver finds, and in how many seconds, on the same real influence vectors.

    python examples/features.py --data-dir CIFAR --output features.safetensors
    python examples/benchmarks/solvers.py --features features.safetensors --penalty 0.001

Without --features the influence is that of scikit-learn's digits. "Share" is the norm of the shift
as a share of that of random sets; a solver's seconds hold everything from the influence to the set,
after one call that compiles. One thread. Prints a table, draws --plot, writes --json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from scipy.optimize import linprog
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from prunesampler import (
    Budget,
    CrossEntropy,
    ExactCurvature,
    HeadGradients,
    Influence,
    anneal,
)
from prunesampler.solve import scaled
from prunesampler.solve.problem import Problem
from prunesampler.solve.solvers import cheapest

sys.path.insert(0, str(Path(__file__).parents[1]))
from features import Features
from linear_probe import digit_features, with_ones

Method = Callable[[Influence, Budget, int], Tensor]
"""From influence, budget and seed to the indices to prune."""


def rows_of(influence: Influence) -> np.ndarray:
    """The search's rows, centred, in units of their mean norm, float64 (n, R)."""
    rows = influence.whitened.flat().double() - influence.whitened_mean.flatten()
    return (rows / rows.norm(dim=1).mean()).numpy()


def random_set(influence: Influence, budget: Budget, seed: int) -> Tensor:
    n = len(influence)
    drawn = np.random.default_rng(seed).choice(n, budget.count_of(n), replace=False)
    return torch.from_numpy(np.sort(drawn))


def top_k(influence: Influence, budget: Budget, seed: int) -> Tensor:
    """The smallest influences, one by one: what score-based selection does."""
    problem = Problem.of(influence, budget, cost=influence.sample_squares())
    return cheapest(problem, seed).pruned


def greedy(influence: Influence, budget: Budget, seed: int, batch: int) -> Tensor:
    """Add the samples that bring the sum nearest to zero, so many at a time (herding)."""
    rows = rows_of(influence).astype(np.float32)
    squares = (rows**2).sum(1)
    free, total = np.ones(len(rows), bool), np.zeros(rows.shape[1], np.float32)
    size, chosen = budget.count_of(len(rows)), 0
    while chosen < size:
        value = np.where(free, 2 * rows @ total + squares, np.inf)
        best = np.argpartition(value, min(batch, size - chosen))[: min(batch, size - chosen)]
        free[best], total = False, total + rows[best].sum(0)
        chosen += len(best)
    return torch.from_numpy(np.flatnonzero(~free))


def balancing(influence: Influence, budget: Budget, seed: int) -> Tensor:
    """Decide sample by sample, the longest rows first, which side brings the sum nearer to zero.

    An added constant coordinate balances the count; what is left of it is set right at random among
    the shortest rows.
    """
    rows = rows_of(influence)
    n, size = len(rows), budget.count_of(len(rows))
    share = size / n
    wide = np.hstack([rows, np.full((n, 1), 0.05)])
    total, pruned = np.zeros(wide.shape[1]), np.zeros(n, bool)
    order = np.argsort(-np.linalg.norm(rows, axis=1))
    for i in order:
        slope, square = total @ wide[i], wide[i] @ wide[i]
        pruned[i] = 2 * slope + (1 - 2 * share) * square < 0
        total += (float(pruned[i]) - share) * wide[i]
    excess = int(pruned.sum()) - size
    shortest = order[::-1][pruned[order[::-1]] == (excess > 0)][: abs(excess)]
    pruned[shortest] ^= True
    return torch.from_numpy(np.flatnonzero(pruned))


def numpy_annealing(influence: Influence, budget: Budget, seed: int, moves: int) -> Tensor:
    """Plain simulated annealing, one swap at a time in Python, as one would write it first."""
    rows, rng = rows_of(influence).astype(np.float32), np.random.default_rng(seed)
    size = budget.count_of(len(rows))
    order = rng.permutation(len(rows))
    total = rows[order[:size]].sum(0)
    norm = float(np.linalg.norm(total))
    for temperature in np.geomspace(1.0, 1e-4, moves):
        x, y = rng.integers(size), size + rng.integers(len(rows) - size)
        changed = total + rows[order[y]] - rows[order[x]]
        after = float(np.linalg.norm(changed))
        if after - norm <= -temperature * np.log(rng.random()):
            total, norm = changed, after
            order[x], order[y] = order[y], order[x]
    return torch.from_numpy(np.sort(order[:size]))


def relaxation(influence: Influence, budget: Budget, seed: int) -> Tensor:
    """A vertex of the relaxed problem by HiGHS, rounded: all but R + 1 samples are whole there.

    The relaxation's minimum, zero, is met by many points, the constant one among them; a random
    linear objective, larger for longer rows, picks a vertex whose broken samples are short rows.
    """
    rows, rng = rows_of(influence), np.random.default_rng(seed)
    size = budget.count_of(len(rows))
    equal = np.vstack([rows.T, np.ones(len(rows))])
    target = np.append(np.zeros(rows.shape[1]), size)
    objective = rng.choice([-1.0, 1.0], len(rows)) * np.linalg.norm(rows, axis=1)
    found = linprog(objective, A_eq=equal, b_eq=target, bounds=(0, 1), method="highs-ds")
    return torch.from_numpy(np.sort(np.argsort(-found.x, kind="stable")[:size]))


def annealing(influence: Influence, budget: Budget, seed: int, moves: int, reach: float) -> Tensor:
    kept, scaled.REACH = scaled.REACH, reach
    try:
        return anneal(influence, budget, seed=seed, moves=moves).pruned
    finally:
        scaled.REACH = kept


def methods(n: int, lp_below: int, largest: int) -> dict[str, Method]:
    found: dict[str, Method] = {
        "random": random_set,
        "top-k by influence norm": top_k,
        "greedy, 20 at a time": partial(greedy, batch=20),
        "balancing, longest first": balancing,
        "NumPy annealing, 100k swaps": partial(numpy_annealing, moves=100_000),
    }
    if n <= lp_below:
        found["relaxed, rounded (HiGHS)"] = relaxation
    for moves in (m for m in (500_000, 2_500_000, 10_000_000, 50_000_000) if m <= largest):
        found[f"anneal, {moves / 1e6:g}M swaps"] = partial(
            annealing, moves=moves, reach=scaled.REACH
        )
    moves = min(2_500_000, largest)
    found[f"anneal, {moves / 1e6:g}M swaps, all rows to the end"] = partial(
        annealing, moves=moves, reach=float("inf")
    )
    return found


def measure(influence: Influence, options: argparse.Namespace) -> list[dict]:
    budget = Budget(fraction=options.fraction)
    random = statistics.mean(
        influence.shift_norm(random_set(influence, budget, seed)) for seed in range(100, 105)
    )
    results = []
    for name, method in methods(len(influence), options.relax_below, options.largest).items():
        if not name.startswith(options.only):
            continue
        shares, seconds = [], []
        for seed in range(options.repeats):
            started = time.perf_counter()
            pruned = method(influence, budget, seed)
            seconds.append(time.perf_counter() - started)
            shares.append(influence.shift_norm(pruned) / random)
        results.append({"method": name, "shares": shares, "seconds": seconds})
        print(f"{name}: {statistics.median(shares):.3%}", file=sys.stderr)
    return results


def repeat_samples(features: Features, samples: int) -> Features:
    """So many samples: mixtures of two of one class, by a random share. For the largest size."""
    rng = torch.Generator().manual_seed(0)
    order = features.y.argsort(stable=True)
    counts = torch.bincount(features.y)
    first = torch.randint(len(order), (samples,), generator=rng)
    label = features.y[order[first]]
    start = counts.cumsum(0) - counts
    other = start[label] + (torch.rand(samples, generator=rng) * counts[label]).long()
    share = torch.rand(samples, 1, generator=rng)
    x = share * features.x[order[first]] + (1 - share) * features.x[order[other]]
    return Features(x, label, features.test_x, features.test_y)


def build(features: Features, penalty: float, samples: int | None) -> Influence:
    """Influence on a softmax head that was trained on the features, nearly to convergence."""
    x, y = with_ones(features.x).numpy(), features.y.numpy()
    fit = LogisticRegression(
        C=1 / (penalty * len(y)), fit_intercept=False, tol=1e-4, max_iter=300
    ).fit(x, y)
    weights = torch.from_numpy(fit.coef_)
    if samples:
        features = repeat_samples(features, samples)
    model = torch.nn.Sequential(torch.nn.Linear(features.x.shape[1], len(weights)))
    with torch.no_grad():
        model[0].weight.copy_(weights[:, :-1])
        model[0].bias.copy_(weights[:, -1])
    measured = HeadGradients("0", CrossEntropy())(model, (features.x.float(), features.y))
    return Influence.build(measured.rows(), ExactCurvature(damping=penalty).factorise(measured))


def show(results: list[dict], title: str) -> None:
    table = Table("method", "share of random", "worst", "seconds", title=title)
    for row in results:
        table.add_row(
            row["method"], f"{statistics.median(row['shares']):.3%}", f"{max(row['shares']):.3%}",
            f"{statistics.median(row['seconds']):.1f}",
        )  # fmt: skip
    Console(width=100).print(table)


def draw(results: list[dict], path: Path, title: str) -> None:
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", title=title)
    axes.axhline(1.0, color="0.5", linestyle="--", label="random")
    axes.legend()
    for number, row in enumerate(row for row in results if row["method"] != "random"):
        x, y = statistics.median(row["seconds"]), statistics.median(row["shares"])
        axes.plot(
            x,
            y,
            "o" if row["method"].startswith("anneal") else "s",
            color=f"C{number % 10}",
        )
        axes.annotate(
            row["method"],
            (x, y),
            xytext=(5, 4 - 12 * (number % 2)),
            textcoords="offset points",
            fontsize=8,
        )
    axes.set(xlabel="seconds, one core", ylabel="norm of the shift, share of random sets'")
    axes.margins(x=0.25)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, help="a file of features.py")
    parser.add_argument("--penalty", type=float, default=0.01)
    parser.add_argument("--fraction", type=float, default=0.4)
    parser.add_argument("--samples", type=int, help="mixtures of the features, so many")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--relax-below", type=int, default=5000, help="largest n for the relaxation"
    )
    parser.add_argument("--largest", type=int, default=10_000_000, help="most swaps of a search")
    parser.add_argument("--only", default="", help="methods whose names begin so")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    source = Features.load(given.features) if given.features else digit_features()
    influence = build(source, given.penalty, given.samples)
    torch.set_num_threads(1)
    anneal(influence, Budget(count=9), moves=1)  # compiles
    found = measure(influence, given)
    dimensions = influence.whitened.shape[0] * influence.whitened.shape[1]
    heading = f"n = {len(influence):,}, R = {dimensions}, {given.fraction:.0%} pruned"
    show(found, heading)
    if given.json:
        given.json.write_text(json.dumps({"title": heading, "results": found}, indent=1))
    if given.plot:
        draw(found, given.plot, heading)
