"""Influence of training samples on the parameters of a linear layer.

All conventions are defined here:

* n samples were measured; the parameters are a matrix of shape (K, D).
* The gradient of sample i is rank one, ``g_i = left_i ⊗ right_i``: K + D numbers, not K * D.
* ``H`` is the mean generalised Gauss-Newton matrix plus ``damping`` times the identity.
* Influence: ``s_i = (1/n) H^-1 (g_i - gbar)``. Subtracting the mean gradient ``gbar`` makes sums
  over groups correct: at an optimum it adds the weight-decay gradient to every ``g_i``.
* Removing the m samples of a set S moves the parameters, to first order, by
  ``shift(S) = n / (n - m) * sum of s_i over S``.

Source: Yang et al., "Dataset Pruning: Reducing Training Data by Examining Generalization
Influence", ICLR 2023 (arXiv 2205.09329), section 3. The paper uses ``g_i`` without ``gbar``
(here ``center=False``) and leaves out the factor ``n / (n - m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prunesampler.influence.factorised import Factorised, IdentityFactorised
from prunesampler.influence.rows import RankOne
from prunesampler.influence.sequences import SequenceRows
from prunesampler.influence.sparse import SparseRows

Metric = Callable[[Factorised, Tensor], Tensor]
"""Applies the matrix of a metric to a shift, or to a stack of them.

The squared norm of a shift x is its inner product with ``metric(factorised, x)``.
"""


def parameter_distance(factorised: Factorised, shift: Tensor) -> Tensor:
    """The paper's metric: Euclidean distance of the parameters.

    Examples:
        >>> parameter_distance(IdentityFactorised(), torch.ones(1, 2)).tolist()
        [[1.0, 1.0]]
    """
    del factorised
    return shift


def loss_distance(factorised: Factorised, shift: Tensor) -> Tensor:
    """The curvature's norm, ``sqrt(x^T H x)``: it does not depend on how parameters are scaled.

    Half its square is the predicted rise of the regularised training loss above its minimum.

    Examples:
        >>> loss_distance(IdentityFactorised(), torch.ones(1, 2)).tolist()
        [[1.0, 1.0]]
    """
    return factorised.multiply(shift)


@dataclass(frozen=True)
class Influence:
    """Influence of n samples, held as gradients and a factorised curvature, never written out.

    Args:
        gradients: Per-sample gradients, n rank-one matrices of shape (K, D), or of layers with many
            outputs, and of sequences, what stands for them (`prunesampler.influence.sequences.Rows`).
        mean: Subtracted from every gradient, shape (K, D), float64.
        factorised: The factorised curvature.
        whitened: The whitened gradients, of any shape; solvers search among these.
        whitened_mean: Subtracted from every whitened row, float64.
        metric: Defines the norm in budgets and reports; solvers search the same rows in any case.

    Examples:
        >>> vectors = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> influence = Influence.from_vectors(vectors)
        >>> influence.shift_norm(torch.tensor([0, 1])), influence.shift_norm(torch.tensor([0, 2])) > 4
        (0.0, True)
    """

    gradients: RankOne | SequenceRows
    mean: Tensor
    factorised: Factorised
    whitened: RankOne | SparseRows
    whitened_mean: Tensor
    metric: Metric = parameter_distance

    @classmethod
    def build(
        cls,
        gradients: RankOne | SequenceRows,
        factorised: Factorised,
        *,
        center: bool = True,
        metric: Metric = parameter_distance,
    ) -> Influence:
        """Whiten the gradients and compute the means.

        Args:
            gradients: Per-sample gradients, shape (K, D) each.
            factorised: Factorised curvature of the same parameters.
            center: Whether to subtract the mean gradient. ``False`` gives the paper's own vectors.
            metric: Either `parameter_distance` or `loss_distance`.
        """
        whitened = factorised.whiten(gradients)
        weight = 1.0 / len(gradients) if center else 0.0
        mean, whitened_mean = gradients.sum() * weight, whitened.sum() * weight
        return cls(gradients, mean, factorised, whitened, whitened_mean, metric)

    @classmethod
    def from_vectors(cls, vectors: Tensor) -> Influence:
        """Use any vectors, shape (n, P), as influence: for other scores and for tests.

        The shift of a set is then ``n / (n - m)`` times its sum of ``vectors[i] - mean``.
        """
        rows = RankOne.from_vectors((vectors - vectors.mean(0)) * len(vectors))
        return cls.build(rows, IdentityFactorised())

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.gradients)

    @property
    def iterative(self) -> bool:
        """Whether every inverse takes many products, so that one for each sample takes too long."""
        return bool(getattr(self.factorised, "iterative", False))

    def gradient_sum(self, pruned: Tensor) -> Tensor:
        """Sum of the centred gradients of the pruned samples, shape (K, D), float64."""
        return self.gradients.sum(pruned) - len(pruned) * self.mean

    def shift(self, pruned: Tensor) -> Tensor:
        """First-order change of the parameters when ``pruned`` is removed, shape (K, D), float64.

        Args:
            pruned: Indices of the pruned samples, int64, shape (m,), m < n.
        """
        return self.factorised.apply_inverse(self.gradient_sum(pruned)) / (len(self) - len(pruned))

    def shift_norm(self, pruned: Tensor) -> float:
        """Norm of :meth:`shift` in the metric, by default in the units of the parameters."""
        return self.norm(self.shift(pruned))

    def norm(self, shift: Tensor) -> float:
        """Norm, in the metric, of a change of the parameters, shape (K, D)."""
        if self.metric is parameter_distance:
            return float(shift.norm())
        return float((shift * self.metric(self.factorised, shift)).sum().clamp(min=0).sqrt())

    def effects(self, gradient: Tensor) -> Tensor:
        """``gradient . s_i`` of every sample: how its removal changes a loss with this gradient.

        Args:
            gradient: Gradient of the loss, shape (K, D).

        Returns:
            Shape (n,), float64.
        """
        direction = self.factorised.apply_inverse(gradient)
        centred = self.gradients.inner(direction) - (self.mean * direction).sum()
        return centred / len(self)

    def products(self, gradient: Tensor) -> Tensor:
        """Inner product, in the metric, of every ``H^-1 (g_i - gbar)`` with ``H^-1 gradient``.

        Args:
            gradient: Any gradient, shape (K, D).

        Returns:
            Shape (n,), float64. The inverse is applied twice in all, not to each of the n samples.
        """
        dual = self.factorised.apply_inverse(
            self.metric(self.factorised, self.factorised.apply_inverse(gradient))
        )
        return self.gradients.inner(dual) - (self.mean * dual).sum()

    def squares(self, gradients: Tensor) -> Tensor:
        """Squared norm, in the metric, of ``H^-1`` times each of a stack of gradients (b, K, D)."""
        shifts = self.factorised.apply_inverse(gradients)
        return (shifts * self.metric(self.factorised, shifts)).sum((1, 2))

    def sample_squares(self) -> Tensor:
        """The :meth:`squares` of all centred gradients, shape (n,), in bounded memory."""
        closed = None
        if self.metric is parameter_distance:
            closed = self.factorised.squares(self.gradients, self.mean, 2)
        elif self.metric is loss_distance:
            closed = self.factorised.squares(self.gradients, self.mean, 1)
        if closed is not None:
            return closed
        return torch.cat(
            [self.squares(dense - self.mean) for dense in self.gradients.dense_chunks()]
        )
