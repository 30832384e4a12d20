"""Layers at several positions of a sample, where the loss depends on a weighted sum of outputs.

The functions take the layer's outputs z, a leaf of autograd of shape (b, P, C), and tell whether what
is computed from them depends on ``sum over p of w_ip z_ip`` alone, with weights w of shape (b, P).
"""

from __future__ import annotations

import torch
from torch import Tensor


def weights_in(outputs: Tensor, leaf: Tensor, tolerance: float) -> Tensor | None:
    """Weights (b, P) with which the layer's outputs sum to the model's (b, C), or None.

    Examples:
        >>> leaf = torch.randn(2, 4, 3, requires_grad=True)
        >>> weights_in(leaf.mean(1), leaf, 1e-3)[0]
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
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
    """Sum over positions of values (b, P, D) with weights (b, P), shape (b, D).

    Examples:
        >>> summed(torch.tensor([[[1.0], [5.0]]]), torch.tensor([[0.5, 0.5]]))
        tensor([[3.]])
    """
    return torch.einsum("bp,bpd->bd", weights.to(values), values)


def shares_in(by_position: Tensor, tolerance: float) -> Tensor | None:
    """Share of every position in gradients (b, P, C), shape (b, P), or None if not all are parallel.

    A sample's shares sum to one, or are zero if its gradient is zero.

    Examples:
        >>> shares_in(torch.tensor([[[1.0, 2.0], [3.0, 6.0]]]), 1e-3)
        tensor([[0.2500, 0.7500]])
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

    Gradients at positions may be parallel although every position has a loss of its own, as always
    with two classes or one output. Then the second derivatives between positions are zero.

    Args:
        by_position: Gradient of the losses with respect to the leaf, itself differentiable.
        leaf: Outputs of the layer.
        shares: Share of every position, from :func:`shares_in`.
        hessian: Sum of all second derivatives over both positions, shape (b, C, C).
        tolerance: Largest relative difference.

    Examples:
        >>> leaf = torch.ones(1, 2, 1, requires_grad=True)
        >>> def lines_up(value):  # the whole Hessian of both squares is 4
        ...     (by_position,) = torch.autograd.grad(value, leaf, create_graph=True)
        ...     shares = shares_in(by_position.detach(), 1e-3)
        ...     return curvature_lines_up(by_position, leaf, shares, torch.full((1, 1, 1), 4.0), 1e-3)
        >>> lines_up(leaf.sum().square() / 2), lines_up(leaf.square().sum())
        (True, False)
    """
    along, at = _numbers(leaf.shape[2:], 0).to(leaf), _numbers(leaf.shape[1:2], 1).to(leaf)
    value = torch.einsum("bpc,p,c->", by_position, at, along)
    found = gradient(value, leaf)
    expected = (shares @ at)[:, None, None] * shares[..., None] * (hessian @ along)[:, None]
    return close(found, expected, tolerance)


def depends_on_others(values: Tensor, leaf: Tensor, tolerance: float) -> bool:
    """Whether a sample's loss depends on the layer's outputs for other samples.

    Examples:
        >>> leaf = torch.tensor([[[1.0]], [[3.0]]], requires_grad=True)
        >>> depends_on_others(leaf[:, 0, 0], leaf, 1e-3)
        False
        >>> depends_on_others((leaf - leaf.mean())[:, 0, 0], leaf, 1e-3)
        True
    """
    chosen = int(values.detach().argmax())
    pull = gradient(values[chosen], leaf).flatten(1).norm(dim=1)
    return bool(pull.sum() - pull[chosen] > tolerance * pull.sum())


def gradient(value: Tensor, by: Tensor) -> Tensor:
    """Gradient of a scalar with respect to a tensor, zero if it does not depend on it.

    Examples:
        >>> x = torch.tensor([2.0], requires_grad=True)
        >>> gradient(x.square().sum(), x), gradient(torch.tensor(1.0), x)
        (tensor([4.]), tensor([0.]))
    """
    if not value.requires_grad:  # as for losses that are linear in the output
        return torch.zeros_like(by)
    return torch.autograd.grad(value, by, retain_graph=True, materialize_grads=True)[0].detach()


def close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether every sample's numbers are as expected, relative to their norm.

    Examples:
        >>> close(torch.tensor([[100.0]]), torch.tensor([[101.0]]), tolerance=0.02)
        True
    """
    norms = torch.maximum(found.flatten(1).norm(dim=1), expected.flatten(1).norm(dim=1))
    return bool(((found - expected).flatten(1).norm(dim=1) <= tolerance * norms).all())


def _numbers(shape: torch.Size, seed: int) -> Tensor:
    """Random numbers, float64, the same for each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
