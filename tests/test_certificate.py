import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import Budget, ExactCurvature, IdentityCurvature, InfluencePruner, SquaredError
from prunesampler.certificate import random_shift
from prunesampler.influence import Influence


def ridge(x, y, penalty):
    """Minimiser of mean squared error plus penalty / 2 times the squared weights."""
    size = x.shape[1]
    return torch.linalg.solve(
        2 * x.T @ x / len(x) + penalty * torch.eye(size), 2 * x.T @ y / len(x)
    )


def test_the_newton_shift_of_a_quadratic_loss_is_the_truth():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(80, 5, generator=generator, dtype=torch.float64)
    y = x.sum(1) + torch.randn(80, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(5, 1, bias=False)).double()
    full = ridge(x, y, 0.1)
    model[0].weight.data = full[None]
    pruner = InfluencePruner(
        TensorDataset(x, y), budget=Budget(fraction=0.4), losses=SquaredError(),
        curvature=ExactCurvature(damping=0.1), progress=False,
    )  # fmt: skip
    selection = pruner.select(model)
    kept = selection.kept
    true = float((ridge(x[kept], y[kept], 0.1) - full).norm())
    assert selection.newton_shift == pytest.approx(true, rel=1e-6)
    assert selection.bound >= true


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_holds_against_retraining(seed):
    rng = np.random.default_rng(seed)
    n, features, classes, penalty = 120, 4, 3, 10.0 ** rng.uniform(-3, -1)
    centres = rng.normal(size=(classes, features))
    y = rng.integers(classes, size=n)
    x = centres[y] + rng.normal(size=(n, features))

    def fit(kept):
        regression = LogisticRegression(
            C=1 / (penalty * len(kept)), fit_intercept=False, solver="newton-cholesky", tol=1e-10
        )
        return torch.from_numpy(regression.fit(x[kept], y[kept]).coef_)

    full = fit(np.arange(n))
    model = nn.Sequential(nn.Linear(features, classes, bias=False)).double()
    model[0].weight.data = full
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    for fraction in (0.1, 0.5):
        selection = InfluencePruner(
            data, budget=Budget(fraction=fraction), progress=False,
            curvature=ExactCurvature(damping=penalty),
            solver=lambda *a, **k: _random(*a, seed=seed),
        ).select(model)  # fmt: skip
        true = float((fit(selection.kept.numpy()) - full).norm())
        assert true <= selection.bound
        if fraction == 0.1:
            assert selection.newton_shift == pytest.approx(true, rel=0.25)


def _random(influence, budget, seed):
    from prunesampler.solvers import Solution

    size = budget.size(len(influence))
    order = torch.randperm(len(influence), generator=torch.Generator().manual_seed(seed))
    pruned = order[:size].sort().values
    return Solution(pruned, influence.shift_norm(pruned))


def test_no_bound_is_claimed_without_a_given_penalty(few_digits):
    model = nn.Sequential(nn.Linear(64, 10))
    for curvature in (ExactCurvature(), ExactCurvature(damping=0.0), IdentityCurvature()):
        pruner = InfluencePruner(
            few_digits, budget=Budget(count=20), curvature=curvature, progress=False
        )
        if curvature == ExactCurvature(damping=0.0):
            with pytest.raises(ValueError, match="not positive definite"):
                pruner.select(model)
        else:
            assert pruner.select(model).bound is None


def test_random_shift_is_the_mean_over_random_sets():
    vectors = torch.randn(400, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    influence = Influence.from_vectors(vectors)
    # E ||sum||^2 of m of n centred vectors without replacement is m (n - m) / (n (n - 1)) sum ||v||^2
    total = float((vectors - vectors.mean(0)).square().sum())
    expected = 400 / 240 * (160 * 240 / (400 * 399) * total) ** 0.5
    assert random_shift(influence, 160, 0, draws=200) == pytest.approx(expected, rel=0.1)
