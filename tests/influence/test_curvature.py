from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from samples import cross_entropy_samples
from torch import Tensor, nn

from prunesampler import (
    BinaryCrossEntropy,
    Budget,
    CrossEntropy,
    ExactCurvature,
    IdentityCurvature,
    InfluencePruner,
    KroneckerCurvature,
    SquaredError,
)
from prunesampler.influence.conjugate import conjugate_gradients
from prunesampler.influence.curvature import Curvature
from prunesampler.influence.factorised import IdentityFactorised
from prunesampler.influence.hessians import DenseHessian, DiagonalHessian, SoftmaxHessian
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.rows import CHUNK


def samples(loss, targets, classes=3, features=4, n=40):
    torch.manual_seed(0)
    inputs = torch.randn(n, features, dtype=torch.float64)
    weights = torch.randn(classes, features, dtype=torch.float64)
    values, delta, hessian = loss.derivatives(inputs @ weights.T, targets)
    return Measurements(delta, inputs, hessian, values), weights


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
    torch.testing.assert_close(measured.gauss_newton(), expected)


@pytest.mark.parametrize("name", LOSSES)
def test_exact_curvature_inverts_and_whitens(name):
    measured, _ = samples(*LOSSES[name])
    factorised = ExactCurvature(damping=0.05).factorise(measured)
    matrix = measured.gauss_newton() + 0.05 * torch.eye(
        len(factorised.cholesky), dtype=torch.float64
    )
    rows = measured.rows()
    flat = rows.flat()
    expected = torch.linalg.solve(matrix, flat[0]).view(rows.shape)
    torch.testing.assert_close(factorised.apply_inverse(flat[0].view(rows.shape)), expected)
    pair = torch.stack([flat[0], flat[1]]).view(2, *rows.shape)
    torch.testing.assert_close(factorised.apply_inverse(pair)[0], expected)
    torch.testing.assert_close(factorised.multiply(factorised.apply_inverse(pair)), pair.double())
    white = factorised.whiten(rows).flat().double()
    light = min(0.05, 0.01 * float((matrix.trace() / len(matrix)) - 0.05))
    lighter = matrix + (light - 0.05) * torch.eye(len(matrix), dtype=torch.float64)
    inner = flat @ torch.linalg.solve(lighter, flat.T)
    torch.testing.assert_close(white @ white.T, inner, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("damping", "once"), [(None, True), (1e-3, True), (5.0, False)])
def test_one_damping_is_factorised_once(damping, once, monkeypatch):
    factors, work = [], torch.linalg.cholesky_ex
    monkeypatch.setattr(
        torch.linalg, "cholesky_ex", lambda matrix: factors.append(work(matrix)) or factors[-1]
    )
    factorised = ExactCurvature(damping=damping).factorise(samples(*LOSSES["softmax"])[0])
    assert len(factors) == 1 + (not once)
    assert (factorised.light is factorised.cholesky) == once
    both = factorised.cholesky @ factorised.cholesky.T, factorised.light @ factorised.light.T
    less = (both[0] - both[1]).diagonal()
    assert (less == 0).all() if once else (less > 1).all()


def test_default_damping_is_a_thousandth_of_the_mean_eigenvalue():
    measured, _ = samples(*LOSSES["softmax"])
    factorised = ExactCurvature().factorise(measured)
    assert factorised.damping == pytest.approx(
        1e-3 * float(torch.linalg.eigvalsh(measured.gauss_newton()).mean())
    )


def test_kronecker_curvature_is_the_product_of_means():
    measured, _ = samples(*LOSSES["softmax"])
    factorised = KroneckerCurvature(damping=0.05).factorise(measured)
    basis = measured.hessian.basis()
    outer = measured.hessian.dense(basis).mean(0)
    inner = measured.inputs.T @ measured.inputs / len(measured)
    dense = torch.kron(outer, inner) + 0.05 * torch.eye(8, dtype=torch.float64)
    matrix = torch.randn(2, 4, dtype=torch.float64)
    expected = torch.linalg.solve(dense, matrix.flatten()).view(2, 4)
    torch.testing.assert_close(factorised.apply_inverse(matrix), expected)


def test_kronecker_whitening_keeps_rows_rank_one_and_evens_out_the_curvature():
    measured, _ = samples(*LOSSES["softmax"])
    factorised = KroneckerCurvature(damping=1e-8).factorise(measured)
    rows = factorised.whiten(measured.rows())
    assert rows.shape == (2, 4)
    white = rows.flat().double()
    solved = torch.stack(
        [factorised.apply_inverse(g.view(2, 4)).flatten() for g in measured.rows().flat()]
    )
    expected = measured.rows().flat() @ solved.T
    torch.testing.assert_close(white @ white.T, expected, rtol=1e-2, atol=1e-2)


def test_identity_curvature_ignores_the_samples():
    measured, _ = samples(*LOSSES["softmax"])
    matrix = torch.randn(2, 4, dtype=torch.float64)
    assert torch.equal(IdentityCurvature().factorise(measured).apply_inverse(matrix), matrix)


def test_above_the_limit_the_error_names_size_and_choices():
    measured, _ = samples(*LOSSES["softmax"])
    with pytest.raises(ValueError, match=r"R = 2 \* 4 = 8, above max_size=7.*AutoCurvature"):
        ExactCurvature(max_size=7).factorise(measured)


@pytest.mark.parametrize("curvature", [ExactCurvature, KroneckerCurvature])
def test_negative_damping_is_refused(curvature):
    with pytest.raises(ValueError, match=r"damping must be zero or more and finite, got -1"):
        curvature(damping=-1.0)


def test_a_concave_loss_is_refused():
    measured, _ = samples(*LOSSES["squares"])
    bent = DenseHessian(-torch.eye(3, dtype=torch.float64).expand(40, 3, 3))
    concave = Measurements(measured.delta, measured.inputs, bent, measured.losses)
    with pytest.raises(ValueError, match="not positive definite"):
        ExactCurvature(damping=0.01).factorise(concave)


def test_small_damping_beside_large_inputs_is_computed_in_double_precision():
    torch.manual_seed(0)
    inputs = 255 * torch.rand(500, 600)
    outputs, labels = torch.randn(500, 3), torch.arange(500) % 3
    values, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    single = Measurements(delta, inputs, hessian, values)
    double = single.map(Tensor.double)
    matrix = torch.randn(2, 600, dtype=torch.float64)
    curvature = ExactCurvature(damping=1e-6)
    found, expected = (curvature.factorise(s).apply_inverse(matrix) for s in (single, double))
    assert (found - expected).norm() <= 1e-3 * expected.norm()


def without_curvature(measured, hessian=True):
    flat = DenseHessian(torch.zeros(40, 3, 3, dtype=torch.float64)) if hessian else measured.hessian
    inputs = measured.inputs if hessian else torch.zeros_like(measured.inputs)
    return Measurements(measured.delta, inputs, flat, measured.losses)


@pytest.mark.parametrize("curvature", [ExactCurvature, KroneckerCurvature])
def test_a_loss_without_curvature_is_told_as_such(curvature):
    nothing = without_curvature(samples(*LOSSES["softmax"])[0])
    for made in (curvature(), curvature(damping=0.0)):
        for call in (made.factorise, lambda few, made=made: made.check(few, 10**6)):
            with pytest.raises(
                ValueError, match=r"no curvature in the layer's output \(as L1"
            ) as told:
                call(nothing)
            assert "damping=, the weight decay" in str(told.value)
            assert "for the default" not in str(told.value)
    given = curvature(damping=0.5)
    given.check(nothing, 10**6)
    matrix = torch.randn(nothing.shape, dtype=torch.float64)
    torch.testing.assert_close(given.factorise(nothing).apply_inverse(matrix), matrix / 0.5)


@pytest.mark.parametrize("curvature", [ExactCurvature(), KroneckerCurvature()])
def test_a_layer_without_inputs_is_told_as_such(curvature):
    dead = without_curvature(samples(*LOSSES["softmax"])[0], hessian=False)
    with pytest.raises(ValueError, match="every input of the layer is zero"):
        curvature.factorise(dead)


def test_a_trial_batch_shows_that_a_loss_has_no_curvature(few_digits):
    def absolute(model, batch):
        return (model(batch[0])[:, 0] - batch[1]).abs()

    model = nn.Sequential(nn.Linear(64, 1))
    for curvature in (None, ExactCurvature(), KroneckerCurvature()):
        pruner = InfluencePruner(
            few_digits,
            budget=Budget(count=20),
            losses=absolute,
            curvature=curvature,
            progress=False,
        )
        for call in (pruner.check, pruner.select):
            with pytest.raises(ValueError, match=r"as L1.*curvature=IdentityCurvature\(\)"):
                call(model)
    InfluencePruner(
        few_digits, budget=Budget(count=20), losses=absolute, progress=False,
        curvature=ExactCurvature(damping=1.0),
    ).check(model)  # fmt: skip


def test_what_is_the_default_is_not_advised():
    measured, _ = samples(*LOSSES["squares"])
    values = torch.ones(40, 3, dtype=torch.float64)
    values[:, 2] = -0.9
    saddle = Measurements(measured.delta, measured.inputs, DiagonalHessian(values), measured.losses)
    with pytest.raises(ValueError, match="mean eigenvalue by default") as told:
        ExactCurvature().factorise(saddle)
    assert "None" not in str(told.value)
    with pytest.raises(ValueError, match="or None for the default"):
        ExactCurvature(damping=1e-3).factorise(saddle)


def test_kronecker_needs_some_damping():
    measured, _ = samples(*LOSSES["softmax"])
    with pytest.raises(ValueError, match="positive damping, got 0; .* or None for the default"):
        KroneckerCurvature(damping=0.0).factorise(measured)


HESSIANS = {
    "softmax": SoftmaxHessian(torch.randn(7, 4).softmax(1), torch.rand(7)),
    "diagonal": DiagonalHessian(torch.randn(7, 4)),
    "dense": DenseHessian(torch.randn(7, 4, 4)),
}


@pytest.mark.parametrize("name", HESSIANS)
def test_applied_hessians_are_the_dense_ones(name):
    hessian, vectors = HESSIANS[name], torch.randn(7, 4, dtype=torch.float64)
    dense = hessian.dense(torch.eye(4)).double()
    expected = torch.einsum("ncd,nd->nc", dense, vectors)
    torch.testing.assert_close(hessian.apply(vectors), expected, rtol=1e-5, atol=1e-6)
    assert hessian.apply(vectors).dtype == torch.float64
    assert hessian.apply(vectors.float()).dtype == torch.float32


@pytest.mark.parametrize("name", LOSSES)
def test_curvature_products_are_those_of_the_matrix(name):
    measured, _ = samples(*LOSSES[name])
    matrix = torch.randn(measured.shape, dtype=torch.float64)
    expected = (measured.gauss_newton() @ matrix.flatten()).view(measured.shape)
    torch.testing.assert_close(measured.curvature_product(matrix), expected)


def test_single_precision_and_several_chunks_hardly_change_a_product():
    many = cross_entropy_samples(2 * CHUNK + 5, 5, 8)
    matrix = torch.randn(many.shape, dtype=torch.float64)
    expected = (many.gauss_newton(torch.float64) @ matrix.flatten()).view(many.shape)
    assert (many.curvature_product(matrix) - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("few", [15, 40, 400])
@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_one_exact_inverse_needs_no_matrix(few, damping, monkeypatch):
    """Fewer samples than the 76 parameters, and more."""
    everyone = cross_entropy_samples(600, 5, 18)
    near, some = ExactCurvature(damping=damping).factorise(everyone), everyone[torch.arange(few)]
    matrix = some.rows().sum() / few
    expected = ExactCurvature().factorise(some, damping).apply_inverse(matrix)
    monkeypatch.setattr(Measurements, "gauss_newton", None)
    found = ExactCurvature().refactorise(some, near).apply_inverse(matrix)
    assert float(found.norm()) == pytest.approx(float(expected.norm()), rel=5e-3)
    if few > 76 or damping > 1e-3:
        assert (found - expected).norm() <= 5e-3 * expected.norm()


@pytest.mark.parametrize("curvature", [KroneckerCurvature(), IdentityCurvature()])
def test_one_approximate_inverse_is_the_factorised_one(curvature):
    everyone = cross_entropy_samples(200, 4, 6)
    near, some = curvature.factorise(everyone), everyone[torch.arange(50)]
    matrix = torch.randn(some.shape, dtype=torch.float64)
    expected = curvature.factorise(some, near.damping).apply_inverse(matrix)
    assert torch.equal(curvature.refactorise(some, near).apply_inverse(matrix), expected)


class OwnCurvature(Curvature):
    def factorise(self, measurements, damping=None):
        return IdentityFactorised(damping or 0.0)


def test_a_curvature_of_ones_own_writes_one_method(few_digits):
    pruner = InfluencePruner(
        few_digits, budget=Budget(count=20), curvature=OwnCurvature(), progress=False
    )
    model = nn.Sequential(nn.Linear(64, 10))
    pruner.check(model)
    selection = pruner.select(model)
    assert selection.metadata["random_newton_shift"] > selection.newton_shift


@pytest.mark.parametrize("seed", range(5))
def test_conjugate_gradients(seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(30, 30, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(30)
    target = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(matrix, target.flatten()).view(5, 6)
    taken = []

    def solve(precondition, **options):
        taken.clear()

        def product(x):
            taken.append(x)
            return (matrix @ x.flatten()).view(5, 6)

        solved = conjugate_gradients(product, target, precondition, **options)
        left = target - (matrix @ solved.solution.flatten()).view(5, 6)
        share = float((left * precondition(left)).sum() / (target * precondition(target)).sum())
        assert solved.residual == pytest.approx(share**0.5, rel=1e-3, abs=1e-9)
        return solved.solution

    def plain(x):
        return x

    def ideal(x):
        return torch.linalg.solve(matrix, x.flatten()).view(5, 6)

    torch.testing.assert_close(solve(plain, tolerance=1e-12), exact)
    torch.testing.assert_close(solve(ideal), exact)
    assert len(taken) == 1
    lengths = [float(solve(plain, tolerance=0.0, most_steps=k).norm()) for k in range(1, 25)]
    assert all(a < b for a, b in pairwise(lengths))  # from below
    assert lengths[-1] <= float(exact.norm()) * (1 + 1e-9)
    assert len(taken) == 24


def test_conjugate_gradients_of_nothing_and_of_a_matrix_that_is_not_positive():
    target = torch.ones(3, dtype=torch.float64)
    assert not conjugate_gradients(lambda x: 2 * x, 0 * target, lambda x: x).solution.any()
    assert not conjugate_gradients(lambda x: -x, target, lambda x: x).solution.any()
    assert not conjugate_gradients(lambda x: x, target * float("nan"), lambda x: x).solution.any()


def test_labels_that_some_batches_lack_are_lost_for_all():
    measured, _ = samples(*LOSSES["softmax"])
    labelled = replace(measured, labels=torch.arange(40) % 3)
    for parts in ([labelled, measured], [measured, labelled], [measured, measured]):
        both = Measurements.cat(parts)
        assert both.labels is None
        assert len(both[torch.tensor([79])]) == 1  # was an IndexError: 40 labels of 80 samples
    assert Measurements.cat([labelled, labelled]).labels.tolist() == 2 * labelled.labels.tolist()


def test_signatures_tell_losses_and_precisions_apart_and_not_numbers_of_samples():
    (softmax, _), (squares, _) = (samples(*LOSSES[name]) for name in ("softmax", "squares"))
    assert softmax[:3].signature() == softmax.signature()
    others = [squares, softmax.map(Tensor.float), replace(softmax, labels=torch.arange(40))]
    assert all(other.signature() != softmax.signature() for other in others)
