import math

import pytest
import torch
from samples import cross_entropy_samples
from test_curvature import LOSSES, samples

from prunesampler import AutoCurvature, BlockCurvature, CrossEntropy, ExactCurvature
from prunesampler.influence import blocks, sparse
from prunesampler.influence.automatic import default_damping
from prunesampler.influence.blocks import LIGHT, ClassBlocks
from prunesampler.influence.factorised import ExactFactorised
from prunesampler.influence.hessians import DiagonalHessian
from prunesampler.influence.matrix_free import MatrixFree
from prunesampler.influence.measurements import Measurements


def gauss_newton(measured, damping):
    matrix = measured.gauss_newton(torch.float64)
    return matrix + damping * torch.eye(len(matrix), dtype=torch.float64)


@pytest.fixture
def whole(monkeypatch):
    """Nothing is dropped, however little it weighs."""
    monkeypatch.setattr(blocks, "NEGLIGIBLE", 0.0)
    monkeypatch.setattr(sparse, "SIGNIFICANT", 0.0)
    monkeypatch.setattr(sparse, "MOST_ENTRIES", 10**6)


@pytest.fixture
def low_rank(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_RANK", 3)
    monkeypatch.setattr(blocks, "MOST_RANK", 3)


def measured_samples(name):
    """Of a loss in test_curvature, or of 500 samples, 12 classes and 31 inputs, or of huge inputs."""
    if name in LOSSES:
        return samples(*LOSSES[name])[0]
    many = cross_entropy_samples(500, 12, 30)
    if name == "huge":
        many = Measurements(many.delta, 2.0**17 * many.inputs, many.hessian, many.losses)
    return many


def dense_blocks(measured, damping):
    """``mean w a a^T + damping I`` for every output, float64, shape (C, D, D)."""
    weights, inputs = measured.hessian.diagonal().double(), measured.inputs.double()
    outer = torch.einsum("nc,ni,nj->cij", weights, inputs, inputs) / len(measured)
    return outer + damping * torch.eye(inputs.shape[1], dtype=torch.float64)


def seen(measured, matrices):
    """One matrix for every output, in the basis of the loss, shape (K * D, K * D)."""
    basis, size = measured.hessian.basis(), math.prod(measured.shape)
    return torch.einsum("ck,cij,cl->kilj", basis, matrices, basis).reshape(size, size)


def written_out(found, shape):
    """The matrix of ``apply_inverse``."""
    size = math.prod(shape)
    eye = torch.eye(size, dtype=torch.float64).view(size, *shape)
    return found.apply_inverse(eye).view(size, size)


def close(found, expected, share):
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= share * float(expected.norm())


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", [*LOSSES, "many"])
@pytest.mark.parametrize("damping", [0.5, 1e-2, 1e-4])
def test_blocks_of_nearly_full_rank_are_the_dense_ones(name, damping):
    measured = measured_samples(name)
    found = ClassBlocks.of(measured, damping)
    assert found.vectors.shape[2] == measured.inputs.shape[1] - 1
    expected = seen(measured, torch.linalg.inv(dense_blocks(measured, damping)))
    close(written_out(found, measured.shape), expected, 1e-3)
    single = torch.randn(measured.shape, dtype=torch.float64)
    close(found.apply_inverse(single).flatten(), expected @ single.flatten(), 1e-3)
    assert found.apply_inverse(single.float()).dtype == torch.float64


@pytest.mark.usefixtures("low_rank")
@pytest.mark.parametrize("name", ["softmax", "squares", "many"])
def test_low_rank_blocks_are_symmetric_positive_definite_and_keep_the_trace(name, monkeypatch):
    monkeypatch.setattr(blocks, "NEGLIGIBLE", 0.0)
    measured = measured_samples(name)
    found = ClassBlocks.of(measured, 1e-3)
    traces = found.values.sum(1) + found.rest * (measured.inputs.shape[1] - 3)
    expected = dense_blocks(measured, 0.0).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(traces.double(), expected, rtol=1e-4, atol=1e-6)
    eye = torch.eye(3).expand(len(found.vectors), 3, 3)
    torch.testing.assert_close(found.vectors.mT @ found.vectors, eye, rtol=0, atol=1e-5)
    matrix = written_out(found, measured.shape)
    close(matrix, matrix.T, 1e-6)
    values = torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    assert float(values[0]) > 0
    assert float(values[-1]) <= 1e3 * (1 + 1e-5)  # 1 / damping
    largest = torch.linalg.eigvalsh(dense_blocks(measured, 0.0))[:, -3:]
    assert float((found.values / largest).min()) > 0.9


def test_more_samples_than_the_limit_are_drawn_by_weight(monkeypatch):
    monkeypatch.setattr(blocks, "LEAST_RANK", 4)
    monkeypatch.setattr(blocks, "MOST_RANK", 4)
    measured = cross_entropy_samples(4000, 5, 4)
    everyone = dense_blocks(measured, 0.0)
    monkeypatch.setattr(blocks, "SAMPLES", 1000)
    found = ClassBlocks.of(measured, 1e-9, seed=1)
    near = torch.einsum("cir,cr,cjr->cij", found.vectors, found.values, found.vectors).double()
    near += found.rest.double()[:, None, None] * (torch.eye(5) - found.vectors @ found.vectors.mT)
    for block, expected in zip(near, everyone, strict=True):
        close(block, expected, 0.15)
    again, other = (ClassBlocks.of(measured, 1e-9, seed=seed) for seed in (1, 2))
    assert torch.equal(found.values, again.values)
    assert torch.equal(found.vectors, again.vectors)
    assert not torch.equal(found.values, other.values)


def test_no_global_random_numbers_are_used():
    measured = measured_samples("many")
    before = torch.get_rng_state()
    ClassBlocks.of(measured, 1e-2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.usefixtures("whole")
def test_outputs_without_curvature_have_the_damping_alone():
    measured = measured_samples("squares")
    values = torch.zeros(40, 3, dtype=torch.float64)
    values[:, 1] = 2.0  # all weight on one
    one = Measurements(measured.delta, measured.inputs, DiagonalHessian(values), measured.losses)
    found = ClassBlocks.of(one, 0.1)
    close(written_out(found, (3, 4)), seen(one, torch.linalg.inv(dense_blocks(one, 0.1))), 1e-3)
    matrix = torch.randn(3, 4, dtype=torch.float64)
    torch.testing.assert_close(found.apply_inverse(matrix)[0], matrix[0] / 0.1)
    torch.testing.assert_close(found.apply_inverse(matrix)[2], matrix[2] / 0.1)
    flat = Measurements(one.delta, one.inputs, DiagonalHessian(0 * values), one.losses)
    nothing = ClassBlocks.of(flat, 0.1)
    torch.testing.assert_close(nothing.apply_inverse(matrix), matrix / 0.1)
    rows = nothing.whiten(flat.rows())
    lengths = flat.rows().norms().square() / (LIGHT * 0.1)
    torch.testing.assert_close(torch.from_numpy(rows.squares()), lengths, rtol=2e-3, atol=0)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("kind", ["constant", "dead", "one input", "one sample"])
def test_degenerate_inputs(kind):
    many = cross_entropy_samples(1 if kind == "one sample" else 60, 4, 6)
    inputs = many.inputs.clone()
    if kind == "constant":
        inputs[:] = torch.arange(7.0) - 2
    elif kind == "dead":
        inputs[:, 2:5] = 0.0
    elif kind == "one input":
        inputs = inputs[:, :1].clone()
    measured = Measurements(many.delta, inputs, many.hessian, many.losses)
    found = ClassBlocks.of(measured, 0.01)
    expected = seen(measured, torch.linalg.inv(dense_blocks(measured, 0.01)))
    close(written_out(found, measured.shape), expected, 1e-3)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("name", [*LOSSES, "many"])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("centred", [False, True])
def test_squares_are_the_explicit_ones(name, power, centred):
    measured = measured_samples(name)
    rows, damping = measured.rows(), 0.05
    mean = rows.sum() / len(rows) * (1.0 if centred else 0.0)
    found = ClassBlocks.of(measured, damping).squares(rows, mean, power)
    inverse = torch.linalg.inv(dense_blocks(measured, damping))
    matrix = seen(measured, torch.linalg.matrix_power(inverse, power))
    flat = rows.flat().double() - mean.flatten()
    expected = torch.einsum("ni,ij,nj->n", flat, matrix, flat)
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=1e-4 * float(expected.mean()))


@pytest.mark.parametrize("damping", [1e-2, 1e-3])
@pytest.mark.parametrize("few", [60, 400])
def test_refactorised_curvature_is_that_of_the_kept_samples(few, damping):
    everyone = cross_entropy_samples(600, 5, 18)
    some = everyone[torch.arange(few)]
    near = BlockCurvature(damping=damping).factorise(everyone)
    kept = BlockCurvature().refactorise(some, near)
    assert kept.damping == damping
    given = some.rows().sum() / few
    expected = torch.linalg.solve(gauss_newton(some, damping), given.flatten()).view(given.shape)
    again = BlockCurvature(damping=damping).factorise(some)
    for found in (kept, again):
        solved = found.apply_inverse(given)
        assert float((solved - expected).norm()) <= 5e-3 * float(expected.norm())
    assert near.residuals == []  # each has its own


@pytest.mark.parametrize(
    ("n", "parameters", "outputs", "expected"),
    [
        (1797, 585, 10, ExactCurvature),
        (50_000, 585, 10, ExactCurvature),
        (10, 8192, 2, ExactCurvature),
        (10, 8193, 2, BlockCurvature),
        (10_000, 8192, 2, ExactCurvature),
        (50_000, 8192, 2, BlockCurvature),
        (50_000, 4617, 10, BlockCurvature),
        (1_280_000, 585, 10, ExactCurvature),
        (10_000_000, 585, 10, BlockCurvature),
        (10_000, 6435, 16, ExactCurvature),
        (10_000, 6435, 100, BlockCurvature),
        (10_000, 2000, 100, ExactCurvature),
    ],
)
def test_the_curvature_is_chosen_by_numbers_alone(n, parameters, outputs, expected, monkeypatch):
    made = AutoCurvature(damping=0.25)
    found = made.of(n, parameters, outputs)
    assert type(found) is expected
    assert found.damping == 0.25
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert made.of(n, parameters, outputs) == found


def test_the_chosen_curvature_does_the_work(monkeypatch):
    small = cross_entropy_samples(100, 4, 6)
    exact = AutoCurvature(damping=0.1).factorise(small)
    assert isinstance(exact, ExactFactorised)
    assert AutoCurvature().factorise(small, 0.2).damping == 0.2
    AutoCurvature().check(small, 100)
    kept = AutoCurvature().refactorise(small[:50], exact)
    assert kept.near is exact
    monkeypatch.setattr("prunesampler.influence.automatic.LARGEST", 20)
    free = AutoCurvature(damping=0.1).factorise(small)
    assert isinstance(free, MatrixFree)
    AutoCurvature().check(small, 100)
    again = AutoCurvature().refactorise(small[:50], free)
    assert again.near is free.near
    assert again.damping == free.damping == 0.1
    given = torch.randn(small.shape, dtype=torch.float64)
    torch.testing.assert_close(
        exact.apply_inverse(given), free.apply_inverse(given), rtol=0.02, atol=0.02
    )
    seen = []
    monkeypatch.setattr(BlockCurvature, "check", lambda self, few, n: seen.append((self, n)))
    AutoCurvature(damping=0.3).check(small, 77)
    assert seen == [(BlockCurvature(damping=0.3), 77)]


def test_a_network_that_is_certain_is_damped_beside_its_inputs():
    torch.manual_seed(0)
    inputs, labels = torch.randn(200, 30), torch.arange(200) % 12
    outputs = 200.0 * torch.nn.functional.one_hot(labels, 12)
    values, delta, hessian = CrossEntropy().derivatives(outputs.float(), labels)
    certain = Measurements(delta, inputs, hessian, values, labels)
    assert default_damping(certain) == pytest.approx(1e-9 * 30, rel=0.2)
