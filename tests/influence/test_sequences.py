"""Sequences of tokens: gradients, curvature and shifts against dense algebra, autograd and retraining."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prunesampler import (
    AutoCurvature,
    BlockCurvature,
    Budget,
    CrossEntropy,
    ExactCurvature,
    Influence,
    anneal,
)
from prunesampler.base.indices import complement
from prunesampler.influence.blocks import ClassBlocks
from prunesampler.influence.certificate import newton_shift
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sequences import Sequences, summed_over, tokens_of
from prunesampler.influence.sparse import SparseRows
from prunesampler.influence.top import kept_outputs

PENALTY = 1e-2


def made(n=40, classes=5, inputs=6, longest=5, sure=1.0, weights=None):
    """Sequences of 0 to ``longest`` tokens, float64, with the bias's one; and features and targets."""
    draw = torch.Generator().manual_seed(n)
    counts = torch.randint(0, longest + 1, (n,), generator=draw)
    total = int(counts.sum())
    features = torch.randn(total, inputs, generator=draw, dtype=torch.float64)
    features[:, -1] = 1.0
    true = sure * torch.randn(classes, inputs, generator=draw, dtype=torch.float64)
    targets = (features @ true.T + torch.randn(total, classes, generator=draw)).argmax(1)
    weights = true if weights is None else weights(features, targets, classes)
    losses, delta, hessian = CrossEntropy().derivatives(features @ weights.T, targets)
    tokens = Measurements(delta, features, hessian, losses)
    return Sequences(tokens, counts).over_tokens(), features, targets, weights


def objective(weights, features, targets):
    return F.cross_entropy(features @ weights.T, targets)


def fitted(features, targets, classes, penalty=PENALTY):
    """The head at the optimum of the mean loss over tokens with a penalty."""
    weights = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = objective(weights, features, targets) + penalty / 2 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weights.detach()


def test_the_mean_gradient_is_that_of_the_mean_over_tokens():
    sequences, features, targets, weights = made()
    leaf = weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(objective(leaf, features, targets), leaf)
    found = sequences.hessian.expand(sequences.rows().sum()) / len(sequences)
    torch.testing.assert_close(found, expected)
    assert float(sequences.losses.mean()) == pytest.approx(
        float(objective(weights, features, targets))
    )


def test_the_curvature_is_the_hessian_of_the_mean_over_tokens():
    sequences, features, targets, weights = made()
    hessian = torch.autograd.functional.hessian(lambda w: objective(w, features, targets), weights)
    basis = sequences.hessian.basis()
    size = math.prod(sequences.shape)
    expected = torch.einsum("ck,cdef,el->kdlf", basis, hessian, basis).reshape(size, size)
    torch.testing.assert_close(sequences.gauss_newton(), expected)
    along = torch.randn(sequences.shape, dtype=torch.float64)
    product = sequences.curvature_product(along)
    torch.testing.assert_close(product.flatten(), expected @ along.flatten())
    assert sequences.mean_eigenvalue() == pytest.approx(float(expected.diagonal().mean()))


def test_a_subset_weighs_its_samples_as_before():
    """The curvature of the kept is the mean over kept samples, whatever their numbers of tokens."""
    sequences, *_ = made()
    chosen = torch.tensor([1, 4, 5, 9, 30])
    rows = sequences.rows()
    parts = [
        sequences.subset(torch.tensor([i])).gauss_newton() for i in chosen if sequences.counts[i]
    ]
    found = sequences.subset(chosen)
    torch.testing.assert_close(found.gauss_newton(), sum(parts) / len(chosen))
    torch.testing.assert_close(found.rows().sum(), rows.sum(chosen))


def test_rows_are_what_their_matrices_are():
    rows = made()[0].rows()
    dense = torch.cat(list(rows.dense_chunks()))
    matrix, weights = torch.randn(rows.shape).double(), torch.rand(len(rows)).double()
    torch.testing.assert_close(rows.inner(matrix), (dense * matrix).sum((1, 2)))
    torch.testing.assert_close(rows.norms(), dense.flatten(1).norm(dim=1))
    torch.testing.assert_close(
        rows.weighted_sum(weights), torch.einsum("n,nkd->kd", weights, dense)
    )
    chosen = torch.tensor([3, 0, 7])
    torch.testing.assert_close(torch.cat(list(rows[chosen].dense_chunks())), dense[chosen])


@given(st.lists(st.integers(0, 4), min_size=1, max_size=8), st.data())
def test_tokens_of_sequences(counts, data):
    chosen = data.draw(st.lists(st.integers(0, len(counts) - 1), max_size=8))
    tokens = torch.arange(sum(counts)).split(counts)
    expected = torch.cat([tokens[i] for i in chosen] or [torch.zeros(0).long()])
    assert (
        tokens_of(torch.tensor(counts), torch.tensor(chosen).long()).tolist() == expected.tolist()
    )
    sums = summed_over(torch.arange(sum(counts)), torch.tensor(counts))
    assert sums.tolist() == [float(part.sum()) for part in tokens]


@pytest.mark.parametrize("curvature", [ExactCurvature, BlockCurvature])
def test_shifts_are_those_of_dense_algebra(curvature):
    sequences, *_ = made(200)
    influence = Influence.build(sequences.rows(), curvature(damping=1e-3).factorise(sequences))
    dense = torch.cat(list(sequences.rows().dense_chunks())).flatten(1)
    matrix = sequences.gauss_newton() + 1e-3 * torch.eye(dense.shape[1])
    pruned = torch.arange(0, 200, 3)
    pull = (dense[pruned] - dense.mean(0)).sum(0)
    expected = torch.linalg.solve(matrix, pull) / (200 - len(pruned))
    found = influence.shift(pruned).flatten()
    assert (found - expected).norm() <= 2e-3 * expected.norm()


def test_blocks_see_the_products_between_the_tokens_of_a_sample():
    """Full blocks, and no damping to speak of: squares are those of the dense block-diagonal inverse."""
    sequences, *_ = made(200, inputs=5)
    blocks, rows = ClassBlocks.of(sequences, 1e-2), sequences.rows()
    outputs, inputs = sequences.hessian.size()[0], sequences.shape[1]
    tokens = sequences.tokens
    inverses = torch.zeros(outputs, inputs, outputs, inputs, dtype=torch.float64)
    for c in range(outputs):
        weights = tokens.hessian.diagonal()[:, c] / len(tokens)
        block = (tokens.inputs * weights[:, None]).T @ tokens.inputs
        inverses[c, :, c] = torch.linalg.inv(block + 1e-2 * torch.eye(inputs))
    dense = sequences.hessian.expand(torch.cat(list(rows.dense_chunks())) - rows.sum() / len(rows))
    expected = torch.einsum("ncd,cdef,nef->n", dense, inverses, dense)
    found = blocks.squares(rows, rows.sum() / len(rows), 1)
    assert (found - expected).norm() <= 0.05 * expected.norm()
    assert bool((sequences.counts > 1).any())


@pytest.mark.parametrize("curvature", [ExactCurvature, BlockCurvature])
def test_a_search_finds_a_balanced_set(curvature):
    sequences, *_ = made(2000)
    influence = Influence.build(sequences.rows(), curvature(damping=1e-3).factorise(sequences))
    solution = anneal(influence, Budget(fraction=0.4))
    random = influence.shift_norm(torch.randperm(2000)[:800])
    assert isinstance(influence.whitened, SparseRows) == (curvature is BlockCurvature)
    assert solution.norm <= 0.05 * random
    assert len(solution.pruned) == 800


def test_retraining_without_the_sequences_ends_where_the_newton_step_says():
    sequences, features, targets, weights = made(400, weights=fitted)
    curvature = AutoCurvature(damping=PENALTY)
    influence = Influence.build(sequences.rows(), curvature.factorise(sequences))
    pruned = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:20]
    kept = complement(pruned, 400)
    again = curvature.refactorise(sequences.subset(kept), influence.factorised)
    predicted = sequences.hessian.expand(newton_shift(again, influence, pruned))
    stay = tokens_of(sequences.counts, kept)
    # A sample weighs what it weighed: the objective is the mean over samples, not over kept tokens.
    weight = len(stay) / len(kept) * sequences.scale
    retrained = fitted(features[stay], targets[stay], len(weights), PENALTY / weight)
    moved = retrained - weights
    assert (
        predicted - moved
    ).norm() <= 0.04 * moved.norm()  # second order: 0.5 % for two sequences


def test_large_vocabularies_keep_the_probable_words():
    sequences, *_ = made(400, classes=300, inputs=12, sure=8.0)
    kept = kept_outputs(sequences.map(lambda t: t.float() if t.is_floating_point() else t))
    curvature = BlockCurvature(damping=1e-3)
    pruned = torch.arange(0, 400, 3)
    shifts = []
    for measured in (sequences, kept):
        influence = Influence.build(measured.rows(), curvature.factorise(measured))
        shifts.append(measured.hessian.expand(influence.shift(pruned)))
    assert (shifts[0] - shifts[1]).norm() <= 0.01 * shifts[0].norm()
    torch.testing.assert_close(kept.rows().norms(), sequences.rows().norms(), rtol=1e-2, atol=1e-3)
