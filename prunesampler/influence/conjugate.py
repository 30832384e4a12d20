"""Conjugate gradients: a linear system solved with nothing but products with its matrix."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE, MOST_STEPS = 1e-3, 100
"""Where the iteration ends: at this share of the first residual, or after so many steps."""


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    target: Tensor,
    precondition: Callable[[Tensor], Tensor],
    *,
    tolerance: float = TOLERANCE,
    most_steps: int = MOST_STEPS,
) -> Tensor:
    """``A^-1 target`` for a symmetric positive definite ``A``, preconditioned, in float64.

    Residuals are measured in the norm of the preconditioner. The iterate grows from zero, so where
    the steps run out the answer is too short, not too long. It also ends, with what there is, where
    rounding leaves no direction in which ``A`` is positive.

    Source: Hestenes and Stiefel, "Methods of Conjugate Gradients for Solving Linear Systems", 1952.

    Args:
        product: from x to ``A x``, both of the shape of ``target``.
        target: of any shape.
        precondition: from r to ``M^-1 r`` with M near A, symmetric and positive definite.
        tolerance: of the residual, as a share of the first.
        most_steps: products that may be taken.
    """
    residual = target.double()
    solution = torch.zeros_like(residual)
    ahead = precondition(residual)
    direction, square = ahead, float((residual * ahead).sum())
    enough = tolerance**2 * square
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
    return solution
