import pytest
import torch

from prunesampler import (
    BinaryCrossEntropy,
    CrossEntropy,
    ExactCurvature,
    IdentityCurvature,
    KroneckerCurvature,
    SquaredError,
)
from prunesampler.curvature import gauss_newton
from prunesampler.samples import DenseHessian, SampleGradients


def samples(loss, targets, classes=3, features=4, n=40):
    torch.manual_seed(0)
    inputs = torch.randn(n, features, dtype=torch.float64)
    weights = torch.randn(classes, features, dtype=torch.float64)
    values, delta, hessian = loss.derivatives(inputs @ weights.T, targets)
    return SampleGradients(delta, inputs, hessian, values), weights


LOSSES = {
    "softmax": (CrossEntropy(label_smoothing=0.1), torch.arange(40) % 3),
    "binary": (BinaryCrossEntropy(), (torch.arange(120).reshape(40, 3) % 2).double()),
    "squares": (SquaredError(), torch.linspace(0, 1, 120, dtype=torch.float64).reshape(40, 3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gauss_newton_equals_the_hessian_of_the_mean_loss(name):
    loss, targets = LOSSES[name]
    measured, weights = samples(loss, targets)

    def mean_loss(w):
        return loss.values(measured.inputs @ w.T, targets).mean()

    basis = measured.hessian.basis()
    whole = torch.func.hessian(mean_loss)(weights)
    size = basis.shape[1] * measured.inputs.shape[1]
    expected = torch.einsum("ck,cidj,dl->kilj", basis, whole, basis).reshape(size, size)
    torch.testing.assert_close(gauss_newton(measured), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_exact_factor_solves_and_whitens(name):
    measured, _ = samples(*LOSSES[name])
    factor = ExactCurvature(damping=0.05).factor(measured)
    matrix = gauss_newton(measured) + 0.05 * torch.eye(len(factor.cholesky), dtype=torch.float64)
    rows = measured.rows()
    flat = rows.flat()
    expected = torch.linalg.solve(matrix, flat[0]).view(rows.shape)
    torch.testing.assert_close(factor.solve(flat[0].view(rows.shape)), expected)
    pair = torch.stack([flat[0], flat[1]]).view(2, *rows.shape)
    torch.testing.assert_close(factor.solve(pair)[0], expected)
    torch.testing.assert_close(factor.multiply(factor.solve(pair)), pair.double())
    white = factor.whiten(rows).flat().double()
    light = min(0.05, 0.01 * float((matrix.trace() / len(matrix)) - 0.05))
    lighter = matrix + (light - 0.05) * torch.eye(len(matrix), dtype=torch.float64)
    inner = flat @ torch.linalg.solve(lighter, flat.T)
    torch.testing.assert_close(white @ white.T, inner, rtol=1e-4, atol=1e-3)


def test_default_damping_is_a_thousandth_of_the_mean_eigenvalue():
    measured, _ = samples(*LOSSES["softmax"])
    factor = ExactCurvature().factor(measured)
    assert factor.damping == pytest.approx(
        1e-3 * float(torch.linalg.eigvalsh(gauss_newton(measured)).mean())
    )


def test_kronecker_factor_is_the_product_of_means():
    measured, _ = samples(*LOSSES["softmax"])
    factor = KroneckerCurvature(damping=0.05).factor(measured)
    basis = measured.hessian.basis()
    outer = measured.hessian.dense(basis).mean(0)
    inner = measured.inputs.T @ measured.inputs / len(measured)
    dense = torch.kron(outer, inner) + 0.05 * torch.eye(8, dtype=torch.float64)
    matrix = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.linalg.solve(dense, matrix.flatten()).view(2, 4)
    torch.testing.assert_close(factor.solve(matrix), expected)


def test_kronecker_whitening_keeps_rows_rank_one_and_evens_out_the_curvature():
    measured, _ = samples(*LOSSES["softmax"])
    factor = KroneckerCurvature(damping=1e-8).factor(measured)
    rows = factor.whiten(measured.rows())
    assert rows.shape == (2, 4)
    white = rows.flat().double()
    solved = torch.stack([factor.solve(g.view(2, 4)).flatten() for g in measured.rows().flat()])
    expected = measured.rows().flat() @ solved.T
    torch.testing.assert_close(white @ white.T, expected, rtol=1e-2, atol=1e-2)


def test_identity_curvature_ignores_the_samples():
    measured, _ = samples(*LOSSES["softmax"])
    matrix = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(IdentityCurvature().factor(measured).solve(matrix), matrix)


def test_above_the_limit_the_error_names_size_and_choices():
    measured, _ = samples(*LOSSES["softmax"])
    with pytest.raises(ValueError, match=r"R = 2 \* 4 = 8, above max_size=7.*KroneckerCurvature"):
        ExactCurvature(max_size=7).factor(measured)


@pytest.mark.parametrize("curvature", [ExactCurvature, KroneckerCurvature])
def test_negative_damping_is_refused(curvature):
    with pytest.raises(ValueError, match=r"damping must be zero or more, got -1"):
        curvature(damping=-1.0)


def test_a_concave_loss_is_refused():
    measured, _ = samples(*LOSSES["squares"])
    bent = DenseHessian(-torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    concave = SampleGradients(measured.delta, measured.inputs, bent, measured.losses)
    with pytest.raises(ValueError, match="not positive definite"):
        ExactCurvature(damping=0.01).factor(concave)


def test_small_damping_beside_large_inputs_is_computed_in_double_precision():
    torch.manual_seed(0)
    inputs = 255 * torch.rand(500, 600)
    outputs, labels = torch.randn(500, 3), torch.arange(500) % 3
    values, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    single = SampleGradients(delta, inputs, hessian, values)
    double = single.map(lambda t: t[0].double())
    matrix = torch.randn(2, 600, dtype=torch.float64)
    curvature = ExactCurvature(damping=1e-6)
    found, expected = (curvature.factor(s).solve(matrix) for s in (single, double))
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def test_kronecker_needs_some_damping():
    measured, _ = samples(*LOSSES["softmax"])
    flat = DenseHessian(torch.zeros(40, 3, 3, dtype=torch.float64))
    nothing = SampleGradients(measured.delta, measured.inputs, flat, measured.losses)
    with pytest.raises(ValueError, match="positive damping"):
        KroneckerCurvature().factor(nothing)
