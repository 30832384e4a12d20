"""Curvature of a large layer, output by output: what a search whitens with, and steps are guided by.

The block of output c is ``mean over i of H_i[c, c] a_i a_i^T + damping I``, of size D: the curvature
with the coupling between outputs left out. It is stored as a low-rank part plus a multiple of the
identity, ``U_c diag(values_c) U_c^T + rest_c (I - U_c U_c^T)``, so nothing of size D x D is kept.

As a preconditioner of conjugate gradients on the exact curvature it takes about ten steps, where
Kronecker factors take a hundred (100 classes, 512 inputs).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prunesampler.influence.hessians import OutputHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Measured, Rows, SequenceRows
from prunesampler.influence.sparse import (
    LOOKED_AT,
    PART,
    SparseRows,
    halves,
    least_share,
    significant,
)
from prunesampler.influence.top_rows import TopRows

LEAST_RANK, MOST_RANK, RANKS = 64, 256, 4096
"""Rank of a block: so high that all ranks add up to ``RANKS``, within these limits."""
NUMBERS = 2**28
"""Most numbers in all blocks: beyond, as for a vocabulary, ranks are lower, but at least 8."""
SPARE_COLUMNS, ROUNDS = 8, 2
"""Columns beyond the rank, and rounds, of the subspace iteration."""
SAMPLES = 1024
"""Samples that a block is made from, or eight for each rank if that is more: the heaviest half, and
others drawn by weight."""
NEGLIGIBLE = 2e-3
"""Samples with less of the largest weight are left out of a block."""
LIGHT = 0.1
"""Share of the damping that rows are whitened with: where damping outweighs the curvature, rows would
be short, and a search would be slow to balance them."""


@dataclass(frozen=True)
class ClassBlocks:
    """A damped block of low rank r for each of the layer's C outputs.

    Args:
        vectors: Orthonormal columns ``U_c``, float32, shape (C, D, r).
        values: Curvature along them, float32, shape (C, r).
        rest: Mean curvature along all other directions, float32, shape (C,).
        damping: Added to all of it.
        hessian: Turns outputs into the basis of the loss, and back.

    Examples:
        >>> from prunesampler.influence.hessians import DiagonalHessian
        >>> vectors = torch.tensor([[[1.0], [0.0]]])
        >>> hessian = DiagonalHessian(torch.ones(2, 1))
        >>> blocks = ClassBlocks(vectors, torch.tensor([[3.0]]), torch.tensor([0.0]), 1.0, hessian)
        >>> blocks.apply_inverse(torch.tensor([[4.0, 4.0]]))
        tensor([[1., 4.]], dtype=torch.float64)
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor
    damping: float
    hessian: OutputHessian

    @classmethod
    def of(cls, measurements: Measured, damping: float, seed: int = 0) -> ClassBlocks:
        """The blocks of these samples.

        Args:
            measurements: Measurements of n samples.
            damping: Added to every block.
            seed: Seed of the subspace iteration and of the samples that are drawn.
        """
        generator = torch.Generator().manual_seed(seed)
        outputs, inputs = measurements.hessian.size()[0], measurements.shape[1]
        rank = block_rank(outputs, inputs)
        vectors = torch.zeros(outputs, inputs, rank)
        values, rest = torch.zeros(outputs, rank), torch.zeros(outputs)
        tokens = measurements.tokens  # of which the curvature is the mean
        samples, at, all_weights = tokens.output_weights(NEGLIGIBLE)
        counts = torch.bincount(at, minlength=outputs).tolist()
        for c, entries in enumerate(torch.split(at.argsort(stable=True), counts)):
            if len(entries):
                indices, weights = samples[entries], all_weights[entries] / len(tokens)
                limit = block_samples(rank)
                rows = _weighted_rows(tokens, indices, weights, limit, generator)
                columns, along = _low_rank(rows, rank, generator)
                vectors[c, :, : len(along)], values[c, : len(along)] = columns, along
                left = float(rows.square().sum() - along.sum())
                rest[c] = max(0.0, left) / max(1, inputs - rank)
        return cls(vectors, values, rest, damping, measurements.hessian)

    def apply_inverse(self, matrix: Tensor) -> Tensor:
        """The inverse blocks applied to matrices of shape (..., K, D), float64."""
        return self._inverse_power(matrix, 1)

    def _inverse_power(self, matrix: Tensor, power: int) -> Tensor:
        """``basis^T M^-power basis`` with the blocks M, applied to matrices of shape (..., K, D)."""
        at = self.hessian.expand(matrix).float()
        base, excess = self._weights(self.damping, power)
        along = torch.einsum("...cd,cdr->...cr", at, self.vectors) * excess
        found = at * base[:, None] - torch.einsum("...cr,cdr->...cd", along, self.vectors)
        return self.hessian.reduce(found)

    def _weights(self, damping: float, power: int = 1) -> tuple[Tensor, Tensor]:
        """``1 / (rest + damping)^power``, (C,), and by how much less it is along the columns, (C, r)."""
        base = (self.rest + damping) ** -power
        excess = base[:, None] - (self.values + damping) ** -power
        return base, excess.clamp(min=0)

    def whiten(self, rows: Rows) -> SparseRows:
        """Rows whitened by the blocks with a tenth of the damping; small entries are dropped."""
        return self._sparse(rows, LIGHT * self.damping, 1)

    def _sparse(self, rows: Rows, damping: float, power: int) -> SparseRows:
        """Rows whose inner products are those of ``rows`` with ``M^-power`` between them."""
        base, excess = self._weights(damping, power)
        samples, places, outputs, values = self._entries(rows)
        inputs, scale = halves(rows.right)
        # The same rounded inputs for both parts of the norm: they nearly cancel where it curves most.
        rounded = torch.from_numpy(inputs.view(np.float16))
        return SparseRows(
            starts=_starts(samples, len(rows)),
            places=places.int().numpy(),
            outputs=outputs.int().numpy(),
            values=(values * scale).numpy(),
            projected=self._projected(rounded, places, outputs, excess.sqrt()).numpy(),
            inputs=inputs,
            base=base.numpy(),
        )

    def _entries(self, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Samples, inputs, outputs and values of the gradients by outputs that are not small."""
        if isinstance(rows, SequenceRows):
            tokens, _, outputs, values = self._entries(rows.tokens)
            samples = rows.owners()[tokens]
            order = (samples * len(self.rest) + outputs).argsort(stable=True)
            return samples[order], tokens[order], outputs[order], rows.scale * values[order]
        if isinstance(rows, TopRows):
            samples, outputs, values = rows.entries()
            return samples, samples, outputs, values
        looked_at = rows.left[:: max(1, len(rows) // LOOKED_AT)]
        least = least_share(self.hessian.expand(looked_at[..., None])[..., 0])
        found = []
        for start in range(0, len(rows), PART):
            delta = self.hessian.expand(rows.left[start : start + PART, :, None])[..., 0].float()
            samples, outputs = significant(delta, least)
            found.append((samples + start, outputs, delta[samples, outputs]))
        samples, outputs, values = (torch.cat(part) for part in zip(*found, strict=True))
        return samples, samples, outputs, values

    def _projected(self, inputs: Tensor, places: Tensor, outputs: Tensor, scale: Tensor) -> Tensor:
        """``scale_c * U_c^T a`` for every entry, shape (nnz, r)."""
        found = torch.empty(len(places), self.vectors.shape[2])
        counts = torch.bincount(outputs, minlength=len(self.rest)).tolist()
        for c, entries in enumerate(torch.split(outputs.argsort(stable=True), counts)):
            if len(entries):
                found[entries] = inputs[places[entries]].float() @ (self.vectors[c] * scale[c])
        return found

    def squares(self, rows: Rows, mean: Tensor, power: int) -> Tensor:
        """``(g_i - mean)^T M^-power (g_i - mean)`` with the blocks M, shape (n,), float64."""
        own = torch.from_numpy(self._sparse(rows, self.damping, power).squares())
        centre = self._inverse_power(mean, power)
        return (own - 2 * rows.inner(centre) + (mean * centre).sum()).clamp(min=0)


def block_rank(outputs: int, inputs: int) -> int:
    """Rank of the blocks of a layer: the fewer outputs, the higher.

    Examples:
        >>> block_rank(10, 1281), block_rank(100, 513), block_rank(1000, 33), block_rank(32_000, 768)
        (256, 64, 32, 10)
    """
    wanted = max(LEAST_RANK, min(MOST_RANK, RANKS // outputs))
    fitting = max(8, NUMBERS // (outputs * inputs))
    return min(wanted, fitting, max(1, inputs - 1))


def block_samples(rank: int) -> int:
    """Most samples that a block of a rank is made from.

    Examples:
        >>> block_samples(64), block_samples(256)
        (1024, 2048)
    """
    return max(SAMPLES, 8 * rank)


def _starts(samples: Tensor, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Where the entries of each sample begin, shape (size + 1,)."""
    starts = np.zeros(size + 1, dtype=np.int64)
    np.cumsum(np.bincount(samples.numpy(), minlength=size), out=starts[1:])
    return starts


def _weighted_rows(
    measurements: Measurements,
    indices: Tensor,
    weights: Tensor,
    limit: int,
    generator: torch.Generator,
) -> Tensor:
    """At most ``limit`` rows whose outer products add up to a block, or to about it."""
    if len(indices) > limit:
        half = limit // 2
        order = weights.argsort(descending=True)
        heavy, light = order[:half], order[half:]
        drawn = torch.multinomial(weights[light], half, replacement=True, generator=generator)
        indices = indices[torch.cat([heavy, light[drawn]])]
        weights = torch.cat([weights[heavy], (weights[light].sum() / half).expand(half)])
    return measurements.inputs[indices].float() * weights.sqrt()[:, None]


def _low_rank(rows: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Largest eigenvalues of ``rows^T rows`` and their vectors, (D, r') and (r',), r' at most ``rank``.

    Source: subspace iteration, Halko, Martinsson and Tropp, "Finding Structure with Randomness", 2011.
    """
    width = min(rank + SPARE_COLUMNS, *rows.shape)
    columns = rows.T @ torch.randn(len(rows), width, generator=generator, dtype=rows.dtype)
    for _ in range(ROUNDS):
        columns = rows.T @ (rows @ torch.linalg.qr(columns).Q)
    columns = torch.linalg.qr(columns).Q
    image = rows @ columns
    values, turned = torch.linalg.eigh(image.T @ image)
    kept = min(rank, width)
    return columns @ turned[:, -kept:], values[-kept:].clamp(min=0)
