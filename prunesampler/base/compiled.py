"""Compiling loops with numba: machine code on disk, random numbers, and half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

FLUSH = 2048
"""Samples whose sum is formed in float32 before it is added in float64."""

F = TypeVar("F", bound=Callable[..., object])


def compiled(
    function: F, *, inline: Literal["never", "always"] = "never", fastmath: bool = False
) -> F:
    """Compile a function, and keep the machine code on disk if a cache folder is writable.

    Examples:
        >>> @compiled
        ... def doubled(x):
        ...     return 2 * x
        >>> doubled(3)
        6
    """
    done: Any
    try:
        done = numba.njit(cache=True, inline=inline, fastmath=fastmath, nogil=True)(function)
    except RuntimeError:  # numba found neither the package's folder nor a cache folder writable
        done = numba.njit(inline=inline, fastmath=fastmath, nogil=True)(function)
    return cast(F, done)


@compiled
def next_random(state: NDArray[np.uint64]) -> np.uint64:
    """One step of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014); ``state`` has one element.

    Examples:
        >>> hex(next_random(np.zeros(1, dtype=np.uint64)))
        '0xe220a8397b1dcdaf'
    """
    state[0] += np.uint64(0x9E3779B97F4A7C15)
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.uint64(z ^ (z >> np.uint64(31)))


@compiled
def flush(part: NDArray[np.float32], total: NDArray[np.float64]) -> None:
    """Add a sum, shape (C, D), to another of more digits, and set it to zero.

    Examples:
        >>> part, total = np.ones((1, 2), np.float32), np.zeros((1, 2))
        >>> flush(part, total)
        >>> part.tolist(), total.tolist()
        ([[0.0, 0.0]], [[1.0, 1.0]])
    """
    for c in range(part.shape[0]):
        for d in range(part.shape[1]):
            total[c, d] += part[c, d]
            part[c, d] = 0.0


def _half(_: Any, bits: Any) -> Any:
    def code(_: Any, builder: Any, __: Any, values: Any) -> Any:
        return builder.fpext(builder.bitcast(values[0], ir.HalfType()), ir.FloatType())

    return types.float32(bits), code


half = cast(Callable[[np.uint16], np.float32], intrinsic(_half))
"""The number that the 16 bits of a half-precision one stand for, as float32, in compiled code alone.

Numba knows no half precision on a CPU, LLVM does.
"""
