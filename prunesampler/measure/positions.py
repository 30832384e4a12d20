"""A layer that is applied at several positions of a sample, of which the loss sees a weighted sum.

All functions take the layer's outputs, a leaf of autograd of shape (b, P, C), and tell whether what
was computed from it depends on ``sum over p of w_ip z_ip`` alone, with weights w of shape (b, P).
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights_in(outputs: Tensor, leaf: Tensor, tolerance: float) -> Tensor | None:
    """Weights with which the model's outputs, shape (b, C), are the sum over the layer's, or None."""
    direction = _numbers(leaf.shape[2:], 0).to(leaf)
    along = (outputs * direction.to(outputs)).sum()
    (pull,) = torch.autograd.grad(along, leaf, retain_graph=True, materialize_grads=True)
    weights = pull @ direction / direction.square().sum()
    if not close(pull, weights[..., None] * direction, tolerance):
        return None
    return (
        weights
        if close(outputs.detach().to(leaf), summed(leaf.detach(), weights), tolerance)
        else None
    )


def summed(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over positions of values (b, P, D) with weights (b, P); shape (b, D)."""
    return torch.einsum("bp,bpd->bd", weights.to(values), values)


def shares_in(by_position: Tensor, tolerance: float) -> Tensor | None:
    """Shares of the positions in gradients (b, P, C) that line up, or None where they do not.

    A sample's shares sum to one; they are zero where its gradient is.
    """
    largest = by_position.abs().amax((1, 2), keepdim=True)
    tiny = torch.finfo(by_position.dtype).tiny
    scaled = by_position / largest.clamp(min=tiny)  # squares of small gradients would vanish
    total = scaled.sum(1)
    shares = torch.einsum("bpc,bc->bp", scaled, total) / total.square().sum(1, True).clamp(min=tiny)
    return shares if close(scaled, shares[..., None] * total[:, None], tolerance) else None


def curvature_lines_up(
    by_position: Tensor, leaf: Tensor, shares: Tensor, hessian: Tensor, tolerance: float
) -> bool:
    """Whether second derivatives between positions p and q are ``w_p w_q`` times the whole Hessian.

    Gradients at positions may line up by chance, as those of two classes or of one output do; then the
    losses are still one per position, and have no derivative between positions.

    Args:
        by_position: gradient of the losses by the leaf, itself differentiable.
        leaf: the layer's outputs.
        shares: of :func:`shares_in`.
        hessian: sum of all second derivatives over both positions, shape (b, C, C).
        tolerance: relative.
    """
    along, at = _numbers(leaf.shape[2:], 0).to(leaf), _numbers(leaf.shape[1:2], 1).to(leaf)
    value = torch.einsum("bpc,p,c->", by_position, at, along)
    found = gradient(value, leaf)
    expected = (shares @ at)[:, None, None] * shares[..., None] * (hessian @ along)[:, None]
    return close(found, expected, tolerance)


def depends_on_others(values: Tensor, leaf: Tensor, tolerance: float) -> bool:
    """Whether the loss of a sample depends on the layer's outputs for other samples."""
    chosen = int(values.detach().argmax())
    pull = gradient(values[chosen], leaf).flatten(1).norm(dim=1)
    return bool(pull.sum() - pull[chosen] > tolerance * pull.sum())


def gradient(value: Tensor, by: Tensor) -> Tensor:
    """Gradient of a number, zero where it does not depend on what it is taken by."""
    if not value.requires_grad:  # as for losses that are linear in the output
        return torch.zeros_like(by)
    return torch.autograd.grad(value, by, retain_graph=True, materialize_grads=True)[0].detach()


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether every sample's numbers are as expected, relative to their norm."""
    norms = torch.maximum(found.flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))
    return bool(((found - expected).flatten(1).norm(dim=1) <= tolerance * norms).all())


def _numbers(shape: torch.Size, seed: int) -> Tensor:
    """Random numbers that are the same each time."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
