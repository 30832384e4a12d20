"""The compiled loops over the kept outputs of samples, one range of samples for each thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.base.compiled import FLUSH, compiled, flush, half

NOTHING = 1e-6
"""Probabilities and gradients below this are left out of products."""

Floats = NDArray[np.float32]


def bits(inputs: Tensor) -> NDArray[np.uint16]:
    """Numbers in half precision as their bits."""
    found: NDArray[np.uint16] = inputs.contiguous().numpy().view(np.uint16)
    return found


def over_threads(part: Callable[[int, int], NDArray[np.float64]], size: int) -> NDArray[np.float64]:
    """Sum of what a function gives for a range of samples per thread, in the order of the ranges."""
    threads = max(1, min(torch.get_num_threads(), size // FLUSH))
    edges = np.linspace(0, size, threads + 1).astype(int).tolist()
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(part, edges[:-1], edges[1:]))
    total = found[0]
    for more in found[1:]:
        total += more
    return total


@partial(compiled, fastmath=True)
def curve(
    outputs: NDArray[np.int32], probabilities: Floats, mass: Floats, inputs: NDArray[np.uint16],
    order: NDArray[np.int64], at: Floats, part: Floats, total: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Add ``H_i at a_i a_i^T`` of the samples ``order[low:high]`` to ``total``."""
    width, kept = inputs.shape[1], outputs.shape[1]
    row, seen = np.empty(width, np.float32), np.empty(kept, np.float32)
    for step in range(low, high):
        i = order[step]
        for d in range(width):
            row[d] = half(inputs[i, d])
        mean, last = np.float32(0), kept
        for e in range(kept):
            if probabilities[i, e] < NOTHING:  # the most probable come first
                last = e
                break
            c, found = outputs[i, e], np.float32(0)
            for d in range(width):
                found += at[c, d] * row[d]
            seen[e] = found
            mean += probabilities[i, e] * found
        for e in range(last):
            c, bent = outputs[i, e], mass[i] * probabilities[i, e] * (seen[e] - mean)
            for d in range(width):
                part[c, d] += bent * row[d]
        if (step - low) % FLUSH == FLUSH - 1 or step == high - 1:
            flush(part, total)


@partial(compiled, fastmath=True)
def add(
    outputs: NDArray[np.int32], delta: Floats, inputs: NDArray[np.uint16], weights: Floats,
    part: Floats, total: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Add the gradients of the samples from ``low`` to before ``high``, times weights, to ``total``."""
    width = inputs.shape[1]
    row = np.empty(width, np.float32)
    for i in range(low, high):
        if weights[i] != 0.0:
            for d in range(width):
                row[d] = half(inputs[i, d])
            for e in range(outputs.shape[1]):
                c, value = outputs[i, e], weights[i] * delta[i, e]
                if abs(value) < NOTHING:
                    continue
                for d in range(width):
                    part[c, d] += value * row[d]
        if (i - low) % FLUSH == FLUSH - 1 or i == high - 1:
            flush(part, total)


@partial(compiled, fastmath=True)
def inner(
    outputs: NDArray[np.int32], delta: Floats, inputs: NDArray[np.uint16], at: Floats,
    found: NDArray[np.float64], low: int, high: int,
) -> None:  # fmt: skip
    """Inner products of the gradients from ``low`` to before ``high`` with a matrix."""
    width = inputs.shape[1]
    for i in range(low, high):
        for e in range(outputs.shape[1]):
            if abs(delta[i, e]) < NOTHING:
                continue
            c, product = outputs[i, e], np.float32(0)
            for d in range(width):
                product += at[c, d] * half(inputs[i, d])
            found[i] += delta[i, e] * product
