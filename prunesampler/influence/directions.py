"""How many directions of a layer's parameters the data determines, rather than the weight decay."""

from __future__ import annotations

import torch

from prunesampler.influence.factorised import ExactFactorised
from prunesampler.influence.influence import Influence
from prunesampler.influence.sequences import Measured


def directions(measurements: Measured, influence: Influence) -> float:
    """Effective number of parameters, ``trace((H - damping I) H^-1)``: from 0 to R.

    With the exact curvature it is exact; otherwise from the curvature ``h_c A`` of each output c, where A is the
    mean outer product of the inputs and ``h_c`` the mean curvature of the output.

    Source: Moody, "The effective number of parameters", NeurIPS 1991.

    Examples:
        >>> from prunesampler import Budget, InfluencePruner
        >>> data = [(torch.randn(4), i % 3) for i in range(60)]
        >>> scores = InfluencePruner(data, budget=Budget(count=20), progress=False).measure(torch.nn.Linear(4, 3))
        >>> 9 < directions(scores.measurements, scores.influence) < 10
        True
    """
    factorised = influence.factorised
    if isinstance(factorised, ExactFactorised):
        size = len(factorised.cholesky)
        whole = torch.eye(size, dtype=torch.float64)
        inverse = torch.linalg.solve_triangular(factorised.cholesky, whole, upper=False)
        return size - factorised.damping * float(inverse.square().sum())
    bends, inputs = diagonal_factors(measurements)
    values = torch.linalg.eigvalsh(inputs).clamp(min=0)
    own = torch.outer(bends, values)
    rank = measurements.shape[0] / len(bends)  # a softmax has one direction less than outputs
    return rank * float((own / (own + factorised.damping).clamp(min=1e-30)).sum())


def diagonal_factors(measurements: Measured) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean curvature of every output, shape (C,), and mean outer product of the inputs, (D, D); float64.

    Examples:
        >>> from prunesampler import SquaredError
        >>> from prunesampler.influence.measurements import Measurements
        >>> losses, delta, hessian = SquaredError().derivatives(torch.zeros(2, 1), torch.ones(2, 1))
        >>> diagonal_factors(Measurements(delta, 3 * torch.ones(2, 1), hessian, losses))
        (tensor([2.], dtype=torch.float64), tensor([[9.]], dtype=torch.float64))
    """
    held = measurements.tokens
    size = held.inputs.shape[1]
    outer = torch.zeros(size, size, dtype=torch.float64)
    bends = torch.zeros(held.hessian.size()[0], dtype=torch.float64)
    for chunk in held.chunks():
        a = chunk.inputs.float()
        outer += a.T @ a
        bends += chunk.hessian.diagonal().double().sum(0)
    return bends / len(held), outer / len(held)
