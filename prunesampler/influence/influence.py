"""Influence of training samples on the parameters of a linear layer.

All conventions live here, once:

* n samples were measured; the parameters are a matrix of shape (K, D).
* The gradient of sample i is rank one, ``g_i = left_i ⊗ right_i``: K + D numbers, not K * D.
* ``H`` is the mean generalised Gauss-Newton matrix plus ``damping`` times the identity.
* Influence: ``s_i = (1/n) H^-1 (g_i - gbar)``. Subtracting the mean gradient ``gbar`` makes groups
  right: at an optimum it equals putting the weight-decay gradient inside every ``g_i``.
* Removing the m samples of a set S moves the parameters, to first order, by
  ``shift(S) = n / (n - m) * sum of s_i over S``.

Source: Yang et al., "Dataset Pruning: Reducing Training Data by Examining Generalization
Influence", ICLR 2023 (arXiv 2205.09329), section 3. The paper uses ``g_i`` without ``gbar``
(here ``center=False``) and leaves out the factor ``n / (n - m)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunesampler.influence.rows import RankOne


class Factor(Protocol):
    """A factorised curvature ``H`` of shape (K*D, K*D), damping included."""

    @property
    def damping(self) -> float:
        """Multiple of the identity that was added to the curvature."""

    def solve(self, matrix: Tensor) -> Tensor:
        """``H^-1`` applied to a matrix of shape (K, D), or to a stack of them, in float64."""

    def multiply(self, matrix: Tensor) -> Tensor:
        """``H`` applied to a matrix of shape (K, D), or to a stack of them, in float64."""

    def whiten(self, rows: RankOne) -> RankOne:
        """Rows in coordinates where the curvature is about the identity: ``L^-1 g``, ``H = L L^T``.

        Solvers search there because all directions weigh the same. Any invertible map keeps
        "the sum is zero" true; reported norms never come from here.
        """

    def squares(self, rows: RankOne, mean: Tensor, power: int) -> Tensor | None:
        """``(g_i - mean)^T H^-power (g_i - mean)`` for every row, shape (n,), float64.

        None where no closed form is known; then every row takes a solve of its own.

        Args:
            rows: n matrices ``g_i`` of shape (K, D).
            mean: shape (K, D), float64.
            power: 1 or 2.
        """


Metric = Callable[[Factor, Tensor], Tensor]
"""How long a shift is: the metric's matrix applied to a shift, or to a stack of them.

The squared norm of a shift x is its inner product with ``metric(factor, x)``.
"""


def parameter_distance(factor: Factor, shift: Tensor) -> Tensor:
    """The paper's metric: Euclidean distance of the parameters."""
    del factor
    return shift


def loss_distance(factor: Factor, shift: Tensor) -> Tensor:
    """The curvature's norm, ``sqrt(x^T H x)``: it does not depend on how parameters are scaled.

    Half its square is the predicted rise of the regularised training loss above its minimum.
    """
    return factor.multiply(shift)


def length(metric: Metric, factor: Factor, shift: Tensor) -> float:
    """Norm of a shift, shape (K, D), in a metric."""
    if metric is parameter_distance:
        return float(shift.norm())
    return float((shift * metric(factor, shift)).sum().clamp(min=0).sqrt())


@dataclass(frozen=True)
class Influence:
    """Influence vectors of n samples, never written out: gradients, a factorised curvature.

    Args:
        gradients: per-sample gradients, n rank-one matrices of shape (K, D).
        mean: what is subtracted from every gradient, shape (K, D), float64.
        factor: the factorised curvature.
        search: the whitened gradients, float32, whatever their shape.
        search_mean: what is subtracted from every row of ``search``, float64.
        metric: what a norm is, in budgets and reports; the search is in ``search`` whatever it is.
    """

    gradients: RankOne
    mean: Tensor
    factor: Factor
    search: RankOne
    search_mean: Tensor
    metric: Metric = parameter_distance

    @classmethod
    def build(
        cls,
        gradients: RankOne,
        factor: Factor,
        *,
        center: bool = True,
        metric: Metric = parameter_distance,
    ) -> Influence:
        """Whiten the gradients and fix the mean.

        Args:
            gradients: per-sample gradients, shape (K, D) each.
            factor: curvature of the same parameters.
            center: subtract the mean gradient. ``False`` gives the paper's literal vectors.
            metric: `parameter_distance` or `loss_distance`.
        """
        search = factor.whiten(gradients)
        share = 1.0 / len(gradients) if center else 0.0
        mean, search_mean = gradients.sum() * share, search.sum() * share
        return cls(gradients, mean, factor, search, search_mean, metric)

    @classmethod
    def from_vectors(cls, vectors: Tensor) -> Influence:
        """Take any vectors, shape (n, P), as centred influence: for other scores and for tests.

        The group shift is then ``n / (n - m)`` times the sum of ``vectors[i] - mean``.
        """
        rows = RankOne.from_vectors((vectors - vectors.mean(0)) * len(vectors))
        return cls.build(rows, IdentityFactor())

    def __len__(self) -> int:
        """Number of samples n."""
        return len(self.gradients)

    def gradient_sum(self, pruned: Tensor) -> Tensor:
        """Sum of the centred gradients of the pruned samples, shape (K, D), float64."""
        return self.gradients.sum(pruned) - len(pruned) * self.mean

    def shift(self, pruned: Tensor) -> Tensor:
        """First-order change of the parameters when ``pruned`` is removed, shape (K, D), float64.

        Args:
            pruned: indices, int64, shape (m,), m < n.
        """
        return self.factor.solve(self.gradient_sum(pruned)) / (len(self) - len(pruned))

    def shift_norm(self, pruned: Tensor) -> float:
        """Norm of :meth:`shift`: in the units of the parameters, unless the metric is another."""
        return length(self.metric, self.factor, self.shift(pruned))

    def products(self, gradient: Tensor) -> Tensor:
        """Inner product, in the metric, of every ``H^-1 (g_i - gbar)`` with ``H^-1 gradient``.

        Args:
            gradient: shape (K, D).

        Returns:
            Shape (n,), float64. One solve for all n: nothing of size (n, K * D) is made.
        """
        dual = self.factor.solve(self.metric(self.factor, self.factor.solve(gradient)))
        return self.gradients.inner(dual) - (self.mean * dual).sum()

    def squares(self, gradients: Tensor) -> Tensor:
        """Squared norm, in the metric, of ``H^-1`` times each of a stack of gradients (b, K, D)."""
        shifts = self.factor.solve(gradients)
        return (shifts * self.metric(self.factor, shifts)).sum((1, 2))

    def sample_squares(self) -> Tensor:
        """:meth:`squares` of every centred gradient, shape (n,), in bounded memory."""
        closed = None
        if self.metric is parameter_distance:
            closed = self.factor.squares(self.gradients, self.mean, 2)
        elif self.metric is loss_distance:
            closed = self.factor.squares(self.gradients, self.mean, 1)
        if closed is not None:
            return closed
        return torch.cat(
            [self.squares(dense - self.mean) for dense in self.gradients.dense_chunks()]
        )


@dataclass(frozen=True)
class IdentityFactor:
    """The identity as curvature: influence is the centred gradient over n."""

    damping: float = 0.0

    def solve(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()

    def multiply(self, matrix: Tensor) -> Tensor:
        """The matrix itself, in float64."""
        return matrix.double()

    def whiten(self, rows: RankOne) -> RankOne:
        """The rows themselves, in float32."""
        return RankOne(rows.left.float(), rows.right.float())

    def squares(self, rows: RankOne, mean: Tensor, power: int) -> Tensor:
        """Squared distance of every row from ``mean``, shape (n,), float64."""
        del power
        return rows.squares(mean, torch.ones_like(mean))
