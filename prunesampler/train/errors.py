"""Errors of samples from gradients that a training pass computes anyway."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FITS = 0.05
"""Largest part of the gradients that a cross-entropy may leave unexplained."""
PULLED = 1e-6
"""Share of the largest gradient below which an output counts as not pulled at."""


@dataclass(frozen=True)
class Scale:
    """The factor between a loss's gradient by the layer's outputs and what arrives there.

    Args:
        factor: Shape (), on the device of the gradients: one over the batch size, the number of batches that
            are accumulated, the loss scaler, together.
        unexplained: Part of the gradients that a cross-entropy with this factor leaves, shape ().

    Example:
        >>> outputs = torch.randn(64, 5, requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, torch.arange(64) % 5).backward()
        >>> scale = scale_of(outputs.detach(), outputs.grad)
        >>> round(float(1 / scale.factor), 2), bool(scale.fits)
        (64.0, True)
    """

    factor: Tensor
    unexplained: Tensor

    @property
    def fits(self) -> Tensor:
        """Whether the loss is a cross-entropy, boolean, shape ()."""
        return (self.unexplained < FITS) & (self.factor > 0)


def scale_of(outputs: Tensor, gradients: Tensor) -> Scale:
    """The factor of a softmax cross-entropy, by least squares.

    Where the target is zero, or the little that label smoothing puts everywhere, the gradient is
    ``factor * (p - constant)``, whatever the target is elsewhere. So the factor is the slope of gradients over
    probabilities among the outputs that are pulled down, and whether they lie on a line tells whether the
    loss is one.

    Args:
        outputs: Outputs of the layer, shape (b, ..., C).
        gradients: Gradients of the whole loss with respect to them, of the same shape.
    """
    p = outputs.detach().float().softmax(-1).reshape(-1, outputs.shape[-1])
    g = gradients.float().reshape(p.shape)
    down = g > PULLED * g.abs().amax()
    count = down.sum().clamp(min=1)
    mean_p, mean_g = (p * down).sum() / count, (g * down).sum() / count
    dp, dg = (p - mean_p) * down, (g - mean_g) * down
    factor = (dp * dg).sum() / dp.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
    unexplained = (dg - factor * dp).norm() / dg.norm().clamp(min=torch.finfo(torch.float32).tiny)
    return Scale(factor, unexplained)


def error_norms(gradients: Tensor) -> Tensor:
    """Norm of every sample's gradient, over all positions and outputs, float32, shape (b,).

    Example:
        >>> error_norms(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
        tensor([5., 1.])
    """
    found: Tensor = gradients.detach().float().flatten(1).norm(dim=1)
    return found
