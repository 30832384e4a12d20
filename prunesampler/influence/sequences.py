"""Samples that are sequences: a loss for each token, and the gradient of a sample is the sum of its tokens'.

The objective is the mean loss over all N tokens, as language models are trained. A sample's loss is its
tokens' times ``n / N``, so that the mean over the n samples is this objective, and the curvature of all
samples is the mean over all tokens. A sample's gradient has the rank of its number of tokens; it is never
written out but for small layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunesampler.influence.hessians import OutputHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.rows import RankOne, matrices_at_a_time
from prunesampler.influence.top_rows import TopRows


@dataclass(frozen=True)
class SequenceRows:
    """Gradients of n sequences: each the sum of the gradients of its tokens, times ``scale``.

    Args:
        tokens: Gradients of all N tokens, those of a sequence together, in the order of the sequences.
        counts: Number of tokens of each sequence, int64, shape (n,); some may be zero.
        scale: Factor of every gradient.

    Examples:
        >>> tokens = RankOne(torch.tensor([[1.0], [2.0], [4.0]]), torch.ones(3, 1))
        >>> rows = SequenceRows(tokens, torch.tensor([2, 1]), 0.5)
        >>> rows.inner(torch.ones(1, 1)).tolist(), rows.norms().tolist()
        ([1.5, 2.0], [1.5, 2.0])
    """

    tokens: RankOne | TopRows
    counts: Tensor
    scale: float

    def __len__(self) -> int:
        """Number of sequences n."""
        return len(self.counts)

    def __getitem__(self, index: Tensor | slice) -> SequenceRows:
        samples = torch.arange(len(self))[index]
        chosen = self.tokens[tokens_of(self.counts, samples)]
        return SequenceRows(chosen, self.counts[index], self.scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one gradient."""
        return self.tokens.shape

    @property
    def right(self) -> Tensor:
        """Inputs of the layer at every token, shape (N, D)."""
        return self.tokens.right

    def owners(self) -> Tensor:
        """The sequence of every token, int64, shape (N,)."""
        return torch.arange(len(self)).repeat_interleave(self.counts)

    def dense_chunks(self) -> Iterator[Tensor]:
        """The gradients written out in chunks of shape (b, K, D), float64, in bounded memory."""
        for start in range(0, len(self), step := matrices_at_a_time(self.shape)):
            part = self[start : start + step]
            yield part.flat().double().view(len(part), *self.shape)

    def flat(self) -> Tensor:
        """Every gradient written out, shape (n, K * D)."""
        assert isinstance(self.tokens, RankOne)
        counts = self.counts.tolist()
        sides = (torch.split(side, counts) for side in (self.tokens.left, self.tokens.right))
        found = [(left.T @ right).flatten() for left, right in zip(*sides, strict=True)]
        return self.scale * torch.stack(found)

    def sum(self, indices: Tensor | None = None) -> Tensor:
        """Sum of the chosen gradients (all by default), shape (K, D), float64."""
        tokens = None if indices is None else tokens_of(self.counts, indices)
        return self.scale * self.tokens.sum(tokens)

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Sum of the gradients times their weights, shape (n,); shape (K, D), float64."""
        return self.scale * self.tokens.weighted_sum(weights.repeat_interleave(self.counts))

    def inner(self, matrix: Tensor) -> Tensor:
        """Inner product of every gradient with a matrix of shape (K, D); shape (n,), float64."""
        return self.scale * summed_over(self.tokens.inner(matrix), self.counts)

    def norms(self) -> Tensor:
        """Norm of every gradient, shape (n,), float64, from the products between its tokens."""
        found = torch.zeros(len(self), dtype=torch.float64)
        ends = self.counts.cumsum(0)
        for i, (end, count) in enumerate(zip(ends.tolist(), self.counts.tolist(), strict=True)):
            tokens = self.tokens[torch.arange(end - count, end)]
            left, right = _pulls(tokens).double(), tokens.right.double()
            found[i] = ((left @ left.T) * (right @ right.T)).sum().clamp(min=0).sqrt()
        return self.scale * found


@dataclass(frozen=True)
class Sequences:
    """Measurements of n sequences; all that is known of them, as of other samples in `Measurements`.

    Args:
        tokens: Measurements of all N tokens that have a loss, those of a sequence together.
        counts: Number of tokens of each sequence, int64, shape (n,).
        scale: Factor of every loss, ``n / N`` once all sequences are there.

    Examples:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(3, 1), torch.zeros(3, 1))
        >>> tokens = Measurements(delta, torch.ones(3, 1), hessian, losses)
        >>> sequences = Sequences(tokens, torch.tensor([2, 1])).over_tokens()
        >>> sequences.rows().sum() / len(sequences), sequences.gauss_newton()
        (tensor([[2.]], dtype=torch.float64), tensor([[2.]], dtype=torch.float64))
    """

    tokens: Measurements
    counts: Tensor
    scale: float = 1.0

    labels: None = None

    def __len__(self) -> int:
        """Number of sequences n."""
        return len(self.counts)

    def __getitem__(self, index: Tensor | slice) -> Sequences:
        samples = torch.arange(len(self))[index]
        chosen = self.tokens[tokens_of(self.counts, samples)]
        return replace(self, tokens=chosen, counts=self.counts[index])

    def over_tokens(self) -> Sequences:
        """The same with the scale at which the mean over the samples is the mean over the tokens.

        Raises:
            ValueError: If no token has a loss.
        """
        if not len(self.tokens):
            raise ValueError(
                f"none of the tokens of {len(self)} sequences has a loss: all targets are ignored; look "
                "at the labels"
            )
        return replace(self, scale=len(self) / len(self.tokens))

    def subset(self, indices: Tensor) -> Sequences:
        """The measurements of these sequences, int64, ascending, at the same scale."""
        chosen = self.tokens.subset(tokens_of(self.counts, indices))
        return replace(self, tokens=chosen, counts=self.counts[indices])

    @property
    def shape(self) -> tuple[int, int]:
        """Shape (K, D) of one gradient in the basis of the loss."""
        return self.tokens.shape

    @property
    def parameters(self) -> int:
        """Number of parameters R = K * D that the loss can tell apart."""
        return self.tokens.parameters

    @property
    def hessian(self) -> OutputHessian:
        """Second derivatives of the tokens' losses."""
        return self.tokens.hessian

    @property
    def losses(self) -> Tensor:
        """Loss of each sequence, shape (n,); their mean is that over all tokens."""
        return self.scale * summed_over(self.tokens.losses, self.counts)

    @property
    def errors(self) -> Tensor:
        """Norm of the gradient of each loss with respect to the outputs at all tokens, (n,), float64."""
        return self.scale * summed_over(self.tokens.errors.square(), self.counts).sqrt()

    def finite(self) -> Tensor:
        """Whether all that was measured of each sequence is finite, shape (n,)."""
        return summed_over(~self.tokens.finite(), self.counts) == 0

    @property
    def _weight(self) -> float:
        """Weight of a token in the mean over samples, over that in the mean over tokens."""
        return self.scale * len(self.tokens) / len(self)

    def rows(self) -> SequenceRows:
        """Gradients ``g_i`` in the basis of the loss."""
        return SequenceRows(self.tokens.rows(), self.counts, self.scale)

    def mean_eigenvalue(self) -> float:
        """Mean eigenvalue of the mean GGN without damping."""
        return self._weight * self.tokens.mean_eigenvalue()

    def gauss_newton(self, dtype: torch.dtype | None = None) -> Tensor:
        """Mean GGN without damping, shape (R, R), float64."""
        return self._weight * self.tokens.gauss_newton(dtype)

    def curvature_product(self, matrix: Tensor) -> Tensor:
        """Mean GGN without damping, applied to matrices of shape (..., K, D); float64."""
        return self._weight * self.tokens.curvature_product(matrix)

    def map(self, change: Callable[[Tensor], Tensor]) -> Sequences:
        """The same with a function applied to every tensor."""
        return replace(self, tokens=self.tokens.map(change), counts=change(self.counts))

    def signature(self) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
        """Name, shape per token and dtype of every tensor, to compare between ranks."""
        return self.tokens.signature()

    def bytes(self) -> int:
        """Bytes that all tensors take."""
        return self.tokens.bytes() + self.counts.nbytes


Rows = RankOne | TopRows | SequenceRows
"""Gradients of n samples."""
Measured = Measurements | Sequences
"""What one pass yields: of samples with one input of the layer, or of sequences."""


def tokens_of(counts: Tensor, samples: Tensor) -> Tensor:
    """The tokens of some sequences, int64, sequence by sequence.

    Args:
        counts: Number of tokens of each sequence, int64, shape (n,).
        samples: Which sequences.

    Examples:
        >>> tokens_of(torch.tensor([2, 0, 3]), torch.tensor([2, 0]))
        tensor([2, 3, 4, 0, 1])
    """
    chosen = counts[samples]
    before = counts.cumsum(0)[samples] - chosen  # where each sequence begins
    first = chosen.cumsum(0) - chosen  # where it begins among those chosen
    return torch.arange(int(chosen.sum())) + (before - first).repeat_interleave(chosen)


def check_rank_one(measured: Measured, curvature: str) -> None:
    """Check that each sample has one gradient of rank one, for curvatures that take nothing else.

    Raises:
        ValueError: If the samples are sequences.

    Examples:
        >>> from prunesampler import SquaredError
        >>> losses, delta, hessian = SquaredError().derivatives(torch.ones(3, 1), torch.zeros(3, 1))
        >>> check_rank_one(Measurements(delta, torch.ones(3, 1), hessian, losses), "KroneckerCurvature")
    """
    if isinstance(measured, Sequences):
        raise ValueError(
            f"{curvature} takes samples with one gradient of rank one, not sequences with a loss for each "
            "token; leave curvature= at its default, which takes layers of any size"
        )


def summed_over(values: Tensor, counts: Tensor) -> Tensor:
    """Sums of consecutive values, ``counts`` at a time, shape (n,), float64.

    Examples:
        >>> summed_over(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2, 0, 1]))
        tensor([3., 0., 3.], dtype=torch.float64)
    """
    owners = torch.arange(len(counts)).repeat_interleave(counts)
    total = torch.zeros(len(counts), dtype=torch.float64)
    return total.index_add_(0, owners, values.double())


def _pulls(tokens: RankOne | TopRows) -> Tensor:
    """Gradients with respect to the outputs, without those outputs that no token has."""
    if isinstance(tokens, RankOne):
        return tokens.left
    outputs, places = tokens.hessian.outputs.unique(return_inverse=True)  # type: ignore[no-untyped-call]
    return tokens.delta.new_zeros(len(tokens), len(outputs)).scatter_add_(1, places, tokens.delta)
