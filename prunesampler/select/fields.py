"""Fields of a selection as a file holds them: anything may stand there, and all of it is checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunesampler.solve.budget import Budget


def budget_from(fields: Any) -> Budget:
    """The budget in a file; ignores ``min_curvature``, which earlier versions wrote.

    Raises:
        TypeError: For anything but the values of a budget by name.

    Examples:
        >>> budget_from({"count": 2}).count
        2
    """
    if not isinstance(fields, dict):
        raise TypeError(f"the budget must be values by name, got {fields!r}")
    return Budget(**{name: value for name, value in fields.items() if name != "min_curvature"})


def check_weights(weights: Tensor, kept: int) -> None:
    """Check the weights of kept samples.

    Args:
        weights: The weights.
        kept: Number of kept samples.

    Raises:
        ValueError: If they are not float32 of shape (kept,), or not finite numbers of at least 0.

    Examples:
        >>> check_weights(torch.ones(3), 3)
    """
    if weights.dtype != torch.float32 or weights.shape != (kept,):
        raise ValueError(
            f"weights must be float32 of shape ({kept},), one per kept sample, got {weights.dtype} "
            f"of shape {tuple(weights.shape)}"
        )
    wrong = (~(weights.isfinite() & (weights >= 0))).nonzero().flatten()
    if len(wrong):
        raise ValueError(
            f"weights must be finite and at least 0, got {float(weights[wrong[0]])} for kept sample "
            f"{int(wrong[0])}; take them from InfluencePruner.weights"
        )


def optional(value: Any) -> float | None:
    """A number, or None if the file holds none.

    Raises:
        TypeError: For anything else.

    Examples:
        >>> optional(1), optional(None)
        (1.0, None)
    """
    return None if value is None else float(number(value, float))


def number(value: Any, kind: type) -> Any:
    """A number of a kind; whole numbers are numbers of every kind, and truth values are not.

    Raises:
        TypeError: For anything else.

    Examples:
        >>> number(3, float), number(3, int)
        (3.0, 3)
    """
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise TypeError(f"{value!r} is not a number")
    return kind(value)
