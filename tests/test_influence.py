import torch
from hypothesis import given
from hypothesis import strategies as st

from prunesampler import CrossEntropy, ExactCurvature
from prunesampler.influence import CHUNK, IdentityFactor, Influence, RankOne
from prunesampler.samples import SampleGradients


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


def cross_entropy_samples(n: int, classes: int, features: int) -> SampleGradients:
    torch.manual_seed(1)
    inputs = torch.cat([torch.randn(n, features), torch.ones(n, 1)], dim=1)
    outputs, labels = torch.randn(n, classes), torch.randint(0, classes, (n,))
    values, delta, hessian = CrossEntropy().derivatives(outputs, labels)
    return SampleGradients(delta, inputs, hessian, values, labels)


def test_influence_equals_dense_float64_algebra():
    n, classes, features = 300, 4, 6
    samples = cross_entropy_samples(n, classes, features)
    damping = 1e-3
    factor = ExactCurvature(damping=damping).factor(samples)
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
    factor = ExactCurvature(damping=0.1).factor(samples)
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
    factor = IdentityFactor()
    assert torch.equal(factor.whiten(rows).left, rows.left)
    assert torch.equal(factor.solve(torch.ones(2, 3)), torch.ones(2, 3, dtype=torch.float64))
