"""What it takes to select sequences whose every token has a loss, up to the head of a language model.

    python examples/benchmarks/engine_tokens.py

Synthetic tokens: words as frequent as in a language (the k-th in proportion to 1 / (k + 3)), features around
a centre for each word, and a head that knows the centres. Each case is C words, d features, n sequences and
T tokens in each. 40 % of the sequences are pruned, by default; shares are of a random set's shift, to first
order, in the parameters and in units of the loss. Seconds are processor time of one thread. Prints a table and
JSON; --json a file.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import psutil
import torch
from engine import Judge, Watch
from overhead import PeakMemory
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from prunesampler import AutoCurvature, Budget, CrossEntropy, Influence, anneal
from prunesampler.base.memory import Room
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Sequences
from prunesampler.measure.filling import Filling

LATENT, POWER = 64, 0.3
"""Dimensions behind the features, and how their scales fall."""
SURE, NOISE = 12.0, 1.2
"""Length of the head's rows, and distance of a token's features from its word's centre, of length one."""


def texts(words: int, inputs: int, samples: int, tokens: int, seed: int) -> Measured:
    """Measurements of sequences of as many tokens each."""
    draw = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, LATENT + 1) ** -POWER
    mix = torch.randn(LATENT, inputs, generator=draw) / LATENT**0.5
    centres = F.normalize((torch.randn(words, LATENT, generator=draw) * scales) @ mix, dim=1)
    frequent = 1 / (torch.arange(words) + 3.0)
    weights = torch.cat([SURE * centres, frequent.log()[:, None]], 1)
    filling, step = Filling(samples, Room()), max(1, 2**24 // words // tokens)
    for part in torch.arange(samples).split(step):
        labels = frequent.multinomial(len(part) * tokens, replacement=True, generator=draw)
        noise = F.normalize(
            (torch.randn(len(labels), LATENT, generator=draw) * scales) @ mix, dim=1
        )
        features = F.pad(centres[labels] + NOISE * noise, (0, 1), value=1.0)
        # What follows is drawn from what the head says, so it is as sure as it may be.
        labels = (features @ weights.T).softmax(1).multinomial(1, generator=draw)[:, 0]
        losses, delta, hessian = CrossEntropy().derivatives(features @ weights.T, labels)
        counts = torch.full((len(part),), tokens)
        batch = Sequences(Measurements(delta, features, hessian, losses), counts)
        filling.add(AutoCurvature().keep(batch))
    found = filling.measurements()
    assert isinstance(found, Sequences)
    return found.over_tokens()


def held(measured: Measured) -> float:
    """Share of the probability, or of the targets, that the kept outputs have, on average."""
    share: Tensor | None = measured.hessian.tensors.get("held")
    return 1.0 if share is None else float(share.mean())


def cost_of(measured: Measured, budget: Budget) -> dict[str, Any]:
    """Seconds of the stages and quality of the set."""
    with Watch() as curvature:
        factorised = AutoCurvature().factorise(measured)
    with Watch() as rows:
        influence = Influence.build(measured.rows(), factorised)
    with Watch() as search:
        pruned = anneal(influence, budget).pruned
    with Watch() as judging:
        judge = Judge(influence, budget)
    parameters, loss = judge.shares(pruned)
    return {
        "kind": type(factorised).__name__,
        "parameters": parameters,
        "loss": loss,
        "held": held(measured),
        "curvature_seconds": curvature.processor,
        "rows_seconds": rows.processor,
        "search_seconds": search.processor,
        "solve_seconds": judging.processor,
        "residual": max(getattr(factorised, "residuals", [0.0])),
        "tokens_per_parameter": len(measured.tokens) / measured.parameters,
        "measured_gib": measured.bytes() / 2**30,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    cases = ["9,64,5000,20", "256,64,2000,64", "5000,256,1000,64", "32000,256,1000,64"]
    parser.add_argument("--cases", nargs="*", default=cases)
    parser.add_argument("--fraction", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cost_of(texts(300, 40, 60, 5, 1), Budget(fraction=0.4))  # compiles the loops
    rows: list[dict[str, Any]] = []
    for case in options.cases:
        words, inputs, samples, tokens = (int(part) for part in case.split(","))
        measured = texts(words, inputs, samples, tokens, options.seed)
        before = psutil.Process().memory_info().rss / 2**30
        with PeakMemory() as memory:
            found = cost_of(measured, Budget(fraction=options.fraction))
        name = f"C {words}, d {inputs}, n {samples}, T {tokens}"
        rows.append({"case": name, **found, "peak_gib": before + memory.peak / 2**30})
        print(rows[-1], flush=True)
    shown = [name for name in rows[0] if name not in ("case", "kind", "residual")]
    table = Table("case", *(name.replace("_", " ") for name in shown))
    for row in rows:
        table.add_row(row["case"], *(f"{row[name]:.3g}" for name in shown))
    Console(width=160).print(table)
    text = json.dumps({"settings": {**vars(options), "json": None}, "rows": rows}, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    main()
