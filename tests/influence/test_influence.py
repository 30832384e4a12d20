import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import cross_entropy_samples

from prunesampler import (
    ExactCurvature,
    IdentityCurvature,
    KroneckerCurvature,
    loss_distance,
    parameter_distance,
)
from prunesampler.influence.influence import IdentityFactorised, Influence
from prunesampler.influence.rows import CHUNK, DENSE_BYTES, RankOne, matrices_at_a_time


def random_rows(n: int, k: int, d: int, seed: int = 0) -> RankOne:
    generator = torch.Generator().manual_seed(seed)
    return RankOne(torch.randn(n, k, generator=generator), torch.randn(n, d, generator=generator))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_rank_one_operations_equal_dense_ones(k, d, seed):
    rows = random_rows(7, k, d, seed)
    dense = torch.einsum("nk,nd->nkd", rows.left.double(), rows.right.double())
    some = torch.tensor([0, 3, 4])
    torch.testing.assert_close(rows.sum(some), dense[some].sum(0))
    torch.testing.assert_close(rows.norms(), dense.flatten(1).norm(dim=1))
    torch.testing.assert_close(rows.flat().double(), dense.flatten(1), rtol=1e-6, atol=1e-6)


def test_sums_over_several_chunks():
    rows = random_rows(2 * CHUNK + 5, 3, 2)
    dense = rows.left.double().T @ rows.right.double()
    torch.testing.assert_close(rows.sum(), dense)


def test_influence_equals_dense_float64_algebra():
    n, classes, features = 300, 4, 6
    samples = cross_entropy_samples(n, classes, features)
    damping = 1e-3
    factor = ExactCurvature(damping=damping).factorise(samples)
    influence = Influence.build(samples.rows(), factor)

    # The same with every matrix written out in all C * D parameters, no basis, no Cholesky.
    p, a = samples.hessian.probabilities.double(), samples.inputs.double()
    output = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    size = classes * (features + 1)
    h = torch.einsum("ncd,ni,nj->cidj", output, a, a).reshape(size, size) / n
    g = (samples.delta.double()[:, :, None] * a[:, None, :]).flatten(1)
    s = torch.linalg.solve(h + damping * torch.eye(size), (g - g.mean(0)).T).T / n

    basis = samples.hessian.basis()
    for pruned in (torch.tensor([5]), torch.arange(0, n, 3)):
        expected = n / (n - len(pruned)) * s[pruned].sum(0)
        found = (basis @ influence.shift(pruned)).flatten()
        assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_centred_influences_sum_to_zero_and_literal_ones_do_not():
    samples = cross_entropy_samples(50, 3, 4)
    factor = ExactCurvature(damping=0.1).factorise(samples)
    everything = torch.arange(50)
    centred = Influence.build(samples.rows(), factor)
    literal = Influence.build(samples.rows(), factor, center=False)
    assert centred.gradient_sum(everything).norm() < 1e-12
    assert literal.gradient_sum(everything).norm() > 0.1


def test_vectors_become_centred_influence():
    vectors = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    influence = Influence.from_vectors(vectors)
    pruned = torch.tensor([1, 4])
    expected = 9 / 7 * (vectors - vectors.mean(0))[pruned].sum(0)
    torch.testing.assert_close(influence.shift(pruned).flatten(), expected)
    assert influence.shift_norm(pruned) == float(influence.shift(pruned).norm())


def test_identity_factor_changes_nothing():
    rows = random_rows(4, 2, 3)
    factor = IdentityFactorised()
    assert torch.equal(factor.whiten(rows).left, rows.left)
    assert torch.equal(
        factor.apply_inverse(torch.ones(2, 3)), torch.ones(2, 3, dtype=torch.float64)
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 10**6))
def test_weighted_squares_are_those_of_dense_matrices(k, d, seed):
    rows = random_rows(7, k, d, seed)
    generator = torch.Generator().manual_seed(seed)
    mean, weights = torch.rand(2, k, d, generator=generator, dtype=torch.float64)
    dense = torch.einsum("nk,nd->nkd", rows.left.double(), rows.right.double())
    expected = (weights * (dense - mean).square()).sum((1, 2))
    torch.testing.assert_close(rows.squares(mean, weights), expected)


def test_chosen_matrices_are_summed_a_chunk_at_a_time(monkeypatch):
    rows = random_rows(3 * CHUNK, 2, 3)
    chosen = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[: 2 * CHUNK + 7]
    expected = rows[chosen].sum()
    taken, take = [], RankOne.__getitem__
    monkeypatch.setattr(RankOne, "__getitem__", lambda r, i: taken.append(take(r, i)) or taken[-1])
    assert torch.equal(rows.sum(chosen), expected)
    assert max(map(len, taken)) == CHUNK


def test_no_rows_are_a_sum_of_zero():
    assert torch.equal(
        random_rows(5, 2, 3).sum(torch.zeros(0, dtype=torch.int64)), torch.zeros(2, 3)
    )


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_matrices_written_out_take_bounded_memory(k, d):
    count = matrices_at_a_time((k, d))
    assert 1 <= count <= CHUNK
    assert count == 1 or 8 * count * k * d <= DENSE_BYTES
    assert count == CHUNK or 8 * (count + 1) * k * d > DENSE_BYTES


@pytest.mark.parametrize("metric", [parameter_distance, loss_distance])
@pytest.mark.parametrize(
    "curvature",
    [ExactCurvature(damping=1e-3), KroneckerCurvature(damping=1e-3), IdentityCurvature()],
)
@pytest.mark.parametrize("center", [True, False])
def test_sample_squares_are_those_of_one_solve_per_sample(curvature, metric, center):
    samples = cross_entropy_samples(60, 4, 5)
    influence = Influence.build(
        samples.rows(), curvature.factorise(samples), center=center, metric=metric
    )
    dense = samples.rows().flat().double().view(60, *influence.gradients.shape) - influence.mean
    shifts = torch.stack([influence.factorised.apply_inverse(g) for g in dense])
    expected = torch.stack([(x * metric(influence.factorised, x)).sum() for x in shifts])
    torch.testing.assert_close(influence.sample_squares(), expected)


def test_a_metric_of_ones_own_has_sample_squares_too():
    samples = cross_entropy_samples(60, 4, 5)
    factor = KroneckerCurvature(damping=1e-3).factorise(samples)
    twice = Influence.build(samples.rows(), factor, metric=lambda factor, shift: 4 * shift)
    once = Influence.build(samples.rows(), factor)
    torch.testing.assert_close(twice.sample_squares(), 4 * once.sample_squares())


def test_sample_squares_of_a_large_kronecker_head_write_no_row_out(monkeypatch):
    samples = cross_entropy_samples(3000, 40, 30)
    factor = KroneckerCurvature(damping=1e-3).factorise(samples)
    influence = Influence.build(samples.rows(), factor)
    some = torch.tensor([0, 1500, 2999])
    expected = [influence.squares((influence.gradient_sum(i[None]))[None]) for i in some]

    def written_out(rows):
        raise AssertionError("a row was written out")

    monkeypatch.setattr(RankOne, "flat", written_out)
    torch.testing.assert_close(influence.sample_squares()[some], torch.cat(expected))
