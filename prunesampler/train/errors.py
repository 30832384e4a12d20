"""Errors of samples from gradients that a training pass computes anyway."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

FITS = 0.05
"""Largest part of the gradients that a cross-entropy may leave unexplained."""
FLOOR = (-0.1, 0.5)
"""Share of an even target that every class may have: none up to rounding, or a label smoothing's."""
SUMMED = 1e-5
"""Relative error of the means that are formed here, in single precision."""
ROWS, NUMBERS = 16, 2**12
"""Of more rows, and more numbers, only some are looked at, so that many classes or tokens cost little."""
BATCHES, POOLED = 16, 2**20
"""Numbers of batches, and of outputs in all, that are looked at together at most."""
PULLED = 1e-6
"""Share of the largest gradient below which an output counts as not pulled at."""


@dataclass(frozen=True)
class Scales:
    """For each of k batches, the factor between a loss's gradient by the layer's outputs and what arrives there.

    Args:
        factor: Shape (k,), on the device of the gradients: one over the batch size, the number of batches that
            are accumulated, the loss scaler, together.
        unexplained: Part of the gradients that a cross-entropy with this factor leaves, shape (k,).
        floor: Share of an even target that every class has, as label smoothing gives it, shape (k,).
        rounding: The part that the precision of the gradients may leave, shape (k,).

    Examples:
        >>> outputs = torch.randn(64, 5, requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, torch.arange(64) % 5).backward()
        >>> scales = scales_of(outputs.detach()[None], outputs.grad[None])
        >>> round(float(1 / scales.factor), 2), bool(scales.tells), bool(scales.fits)
        (64.0, True, True)
    """

    factor: Tensor
    unexplained: Tensor
    floor: Tensor
    rounding: Tensor

    @property
    def tells(self) -> Tensor:
        """Whether outputs differ enough to tell: not those of a layer that begins with zeros."""
        return self.rounding < 0.5

    @property
    def fits(self) -> Tensor:
        """Whether the loss is a cross-entropy, boolean, shape (k,)."""
        low, high = FLOOR
        line = (self.unexplained < FITS + self.rounding) & (self.factor > 0)
        return line & (self.floor > low - self.rounding) & (self.floor < high + self.rounding)


def scales_of(outputs: Tensor, gradients: Tensor) -> Scales:
    """The factors of a softmax cross-entropy over k batches of one size, by least squares.

    Where the target is zero, or the little that label smoothing puts everywhere, the gradient is
    ``factor * (p - constant)``, whatever the target is elsewhere. So the factor is the slope of gradients over
    probabilities among the outputs that are pulled down, and whether they lie on a line tells whether the
    loss is one.

    Args:
        outputs: Outputs of the layer, shape (k, b, ..., C).
        gradients: Gradients of each batch's whole loss with respect to them, of the same shape.
    """
    classes = outputs.shape[-1]
    p, g = _some(
        outputs.detach().flatten(1, -2), gradients.flatten(1, -2), max(ROWS, NUMBERS // classes)
    )
    p, g = p.float().softmax(-1), g.float()
    most = g.abs().amax((1, 2), keepdim=True)
    # The label's own output, too, may pass a smooth target.
    down = (g > PULLED * most) & (p < 0.5)
    count = down.sum((1, 2), keepdim=True).clamp(min=1)
    mean_p, mean_g = ((x * down).sum((1, 2), keepdim=True) / count for x in (p, g))
    dp, dg = (p - mean_p) * down, (g - mean_g) * down
    least = torch.finfo(torch.float32).tiny
    rounded = max(torch.finfo(gradients.dtype).eps, SUMMED)
    spread = dp.square().sum((1, 2)).clamp(min=least)
    factor = (dp * dg).sum((1, 2)) / spread
    unexplained = (dg - factor[:, None, None] * dp).norm(dim=(1, 2)) / dg.norm(dim=(1, 2)).clamp(
        min=least
    )
    floor = (mean_p.flatten() - mean_g.flatten() / factor) * classes
    rounding = rounded * (p * down).norm(dim=(1, 2)) / spread.sqrt()
    rounding = torch.where(down.flatten(1).any(1), rounding, math.inf)
    return Scales(factor, unexplained, floor, rounding)


def _some(outputs: Tensor, gradients: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """So many rows of each batch: those of the largest gradients, since tokens may be ignored, and some others."""
    size = outputs.shape[1]
    if size <= rows:
        return outputs, gradients
    others = torch.arange(0, size, -(-2 * size // rows), device=outputs.device)
    largest = gradients.norm(dim=2).topk(rows // 2, dim=1).indices
    picked = torch.cat([largest, others.expand(len(largest), -1)], 1)[:, :, None]
    return outputs.take_along_dim(picked, 1), gradients.take_along_dim(picked, 1)


class Units:
    """Errors of one batch after another, all in units of the loss or all in shares of their batch's mean.

    Which of them is decided by the first batch that tells. Nothing waits for the device after that.

    Args:
        exact: Whether they are in units of the loss, or None where that is not known yet.

    Attributes:
        exact: the same, once it is known.

    Examples:
        >>> outputs = torch.tensor([[0.3, 0.7, 0.1], [0.1, 0.2, 0.6]], requires_grad=True)
        >>> torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1])).backward()
        >>> units = Units()
        >>> units.errors(outputs[None], outputs.grad[None]), units.exact
        (tensor([[0.8668, 0.8728]]), True)
    """

    def __init__(self, exact: bool | None = None) -> None:
        self.exact = exact
        self._factor: Tensor | None = (
            None  # times the batch size, of the last cross-entropy, shape (1,)
        )

    def errors(self, outputs: Tensor, gradients: Tensor) -> Tensor | None:
        """Errors of the samples of k batches of one size, in the order in which they were trained on.

        Args:
            outputs: Outputs of the layer, shape (k, b, ..., C); k = 1 while ``exact`` is None.
            gradients: Gradients of the whole loss with respect to them, of the same shape.

        Returns:
            Float32, shape (k, b), NaN after an overflow; None if nothing can be told.

        Raises:
            ValueError: For batches of one sample, whose share of the mean is one.
        """
        norms: Tensor = gradients.float().flatten(2).norm(dim=2)
        size, scales = gradients.shape[1], None
        if self.exact is not False and outputs.dim() in (3, 4) and outputs.shape[-1] > 1:
            scales = scales_of(outputs, gradients)
        if self.exact is None:
            if not norms.any():
                return norms
            # A loss scaler may overflow at first, and a layer may begin with zeros.
            if not gradients.isfinite().all() or (scales is not None and not scales.tells.all()):
                return None
            self.exact = scales is not None and bool(scales.fits.all())
        if self.exact and scales is not None:
            found = norms * size / self._factors(scales, size)[:, None]
        elif size == 1:
            raise ValueError(
                "with one sample in a batch, and a loss that is no cross-entropy, errors cannot be compared; take "
                "larger batches"
            )
        else:
            mean = norms.mean(1, keepdim=True)
            found = (
                norms / torch.where(mean == 0, 1.0, mean) + 0 * mean
            )  # NaN for all if one overflows
        return torch.where(found.isfinite(), found, math.nan)

    def _factors(self, scales: Scales, size: int) -> Tensor:
        """Each batch's factor times its size or, where it has none, that of the last that had; shape (k,)."""
        own = scales.factor * size
        known = torch.cat([own[:1] if self._factor is None else self._factor, own])
        places = torch.arange(1, len(known), device=own.device) * scales.fits
        found = known[places.cummax(0).values]
        self._factor = found[-1:]
        return found


class Pool:
    """Keeps the outputs and gradients of some small batches, since many at once cost little more than one.

    Args:
        units: What makes errors of them.
        write: Called with the samples of the batches, in one list, and their errors, shape (number of samples,).

    Examples:
        >>> outputs, pool = torch.randn(2, 3, requires_grad=True), Pool(Units(), lambda *batch: seen.append(batch))
        >>> seen = []
        >>> torch.nn.functional.cross_entropy(outputs, torch.tensor([0, 1])).backward()
        >>> for samples in ([4, 5], [2, 3], [0, 1]):
        ...     pool.add(samples, outputs.detach(), outputs.grad)
        >>> pool.empty()
        >>> [samples for samples, errors in seen]
        [[4, 5], [2, 3, 0, 1]]
    """

    def __init__(self, units: Units, write: Callable[[list[int], Tensor], None]) -> None:
        self._units, self._write = units, write
        self._held: list[tuple[list[int], Tensor, Tensor]] = []

    def add(self, samples: list[int], outputs: Tensor, gradients: Tensor) -> None:
        """A batch of these samples was trained on."""
        if self._held and gradients.shape != self._held[0][2].shape:
            self.empty()
        large = gradients.numel() * 2 > POOLED
        if not large and self._units.exact is not None:
            # Copies, because the memory of either may be used again.
            outputs, gradients = outputs.clone(), gradients.clone()
        self._held.append((samples, outputs, gradients))
        full = len(self._held) * gradients.numel() >= POOLED or len(self._held) == BATCHES
        if large or full or self._units.exact is None:
            self.empty()

    def empty(self) -> None:
        """Write the errors of all that is held."""
        if not self._held:
            return
        samples, outputs, gradients = zip(*self._held, strict=True)
        self._held = []
        single = len(samples) == 1
        errors = self._units.errors(
            *(x[0][None] if single else torch.stack(x) for x in (outputs, gradients))
        )
        if errors is not None:
            self._write([i for batch in samples for i in batch], errors.flatten())
