"""Conjugate gradients: apply the inverse of a matrix, given only products with the matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

TOLERANCE, MOST_STEPS = 1e-3, 300
"""The iteration ends at this share of the first residual, or after this number of steps."""


class Solved(NamedTuple):
    """A solution, and the norm of its residual as a share of the first.

    Examples:
        >>> Solved(torch.ones(1), residual=1e-4).residual
        0.0001
    """

    solution: Tensor
    residual: float


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float = TOLERANCE,
    most_steps: int = MOST_STEPS,
) -> Solved:
    """``A^-1 target`` for a symmetric positive definite ``A``, preconditioned, in float64.

    Residuals are measured in the norm of the preconditioner. The iterate grows from zero, so if the
    steps run out, its norm is too small, not too large. The iteration also ends early where rounding
    leaves no direction in which ``A`` is positive.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.

    Args:
        product: Maps x to ``A x``, both of the shape of ``target``.
        target: Right-hand side, of any shape.
        precondition: Maps r to ``M^-1 r``, with M near A, symmetric and positive definite.
        tolerance: Largest final residual, as a share of the first.
        most_steps: Largest number of products.

    Examples:
        >>> conjugate_gradients(lambda x: 4 * x, torch.tensor([2.0, 6.0]), lambda r: r)
        Solved(solution=tensor([0.5000, 1.5000], dtype=torch.float64), residual=0.0)
    """
    residual = target.double()
    solution = torch.zeros_like(residual)
    ahead = precondition(residual)
    direction, square = ahead, float((residual * ahead).sum())
    first, enough = square, tolerance**2 * square
    for _ in range(most_steps):
        if not square > enough:  # also where it is not a number
            break
        image = product(direction)
        bend = float((direction * image).sum())
        if not bend > 0:
            break
        solution = solution + (square / bend) * direction
        residual = residual - (square / bend) * image
        ahead = precondition(residual)
        before, square = square, float((residual * ahead).sum())
        direction = ahead + (square / before) * direction
    return Solved(solution, math.sqrt(max(square, 0.0) / first) if first else 0.0)
