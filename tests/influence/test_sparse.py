import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import cross_entropy_samples
from test_blocks import LOSSES, dense_blocks, measured_samples, seen

from prunesampler import BlockCurvature, CrossEntropy, ExactCurvature, Influence
from prunesampler.base.compiled import compiled, half
from prunesampler.influence import sparse
from prunesampler.influence.blocks import LIGHT, ClassBlocks
from prunesampler.influence.measurements import Measurements
from prunesampler.influence.sparse import SparseRows, halves, significant


def random_entries(seed, largest=1.0, longest=1):
    """Rows of samples of 1 to ``longest`` inputs, of which every output may be an entry, and the
    same densely, float64."""
    generator = torch.Generator().manual_seed(seed)

    def whole(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    n, outputs, features, rank = whole(1, 30), whole(1, 12), whole(1, 40), whole(1, 9)
    owners = torch.arange(n).repeat_interleave(
        torch.randint(1, longest + 1, (n,), generator=generator)
    )
    delta = torch.randn(len(owners), outputs, generator=generator)
    delta *= torch.rand(len(owners), outputs, generator=generator) < 0.4  # also without entries
    inputs = largest * torch.randn(len(owners), features, generator=generator)
    bits, scale = halves(inputs)
    places, at = delta.nonzero(as_tuple=True)
    order = (owners[places] * outputs + at).argsort(stable=True)
    places, at = places[order], at[order]
    samples = owners[places]
    base = 1 + torch.rand(outputs, generator=generator)
    projected = 0.1 * torch.randn(len(samples), rank, generator=generator)
    rows = SparseRows(
        starts=np.searchsorted(samples.numpy(), np.arange(n + 1)),
        places=places.int().numpy(),
        outputs=at.int().numpy(),
        values=(delta[places, at] * scale).numpy(),
        projected=projected.numpy(),
        inputs=bits,
        base=base.numpy(),
    )
    held = torch.from_numpy(bits.view(np.float16)).double()
    every = scale * delta.double()[:, :, None] * held[:, None, :]
    first = torch.zeros(n, outputs, features, dtype=torch.float64).index_add_(0, owners, every)
    second = torch.zeros(n, outputs, rank, dtype=torch.float64)
    parts = scale * delta[places, at].double()[:, None] * projected.double()
    second.index_put_((samples, at), parts, accumulate=True)
    return rows, first, second, base.double()


def dense_square(first, second, base):
    return (base * first.square().sum(-1)).sum(-1) - second.square().sum((-1, -2))


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e5, 1e9]), st.integers(1, 4))
def test_sums_and_squares_are_those_of_dense_float64_algebra(seed, largest, longest):
    rows, first, second, base = random_entries(seed, largest, longest)
    n = len(rows)
    assert n == len(first)
    size = float(first.abs().sum() + second.abs().sum())
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: (n + 1) // 2]
    for found, some in ((rows.sum(), slice(None)), (rows.sum(chosen), chosen)):
        expected = torch.cat([first[some].sum(0), second[some].sum(0)], dim=1)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * size)
        square = float(dense_square(first[some].sum(0), second[some].sum(0), base))
        assert rows.square(found.numpy()) == pytest.approx(max(0.0, square), rel=1e-4, abs=1e-12)
    squares = torch.from_numpy(rows.squares())
    expected = dense_square(first, second, base)
    torch.testing.assert_close(
        squares, expected, rtol=1e-4, atol=1e-5 * float(first.square().sum())
    )


def test_a_square_is_never_below_zero():
    rows, *_ = random_entries(3)
    total = np.zeros((len(rows.base), rows.inputs.shape[1] + rows.projected.shape[1]))
    assert rows.square(total) == 0.0
    total[0, -1] = 1.0  # more covered than there is, as rounding may leave it
    assert rows.square(total) == 0.0


def test_no_samples_sum_to_zero():
    rows, *_ = random_entries(5)
    assert not rows.sum(torch.zeros(0, dtype=torch.int64)).any()


@given(st.integers(0, 10**6), st.floats(-2, 35), st.integers(1, 70))
def test_halves_hold_inputs_to_three_digits(seed, exponent, width):
    inputs = torch.randn(9, width, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    bits, scale = halves(inputs)
    assert bits.dtype == np.uint16
    assert bits.shape == (9, width)
    held = torch.from_numpy(bits.view(np.float16))
    assert torch.isfinite(held).all()
    assert float(held.abs().max()) <= sparse.LARGEST_HALF
    assert np.log2(scale) == int(np.log2(scale))
    assert scale == 1.0 or float(held.abs().max()) > sparse.LARGEST_HALF / 2
    largest = float(inputs.abs().max())
    found = scale * held.double()
    torch.testing.assert_close(found, inputs.double(), rtol=2**-11, atol=1e-6 * largest)


def test_halves_above_the_range_of_half_precision():
    inputs = torch.tensor([[65_505.0, -1e30, 0.0], [3e30, 1.0, 2e27]])
    bits, scale = halves(inputs)
    found = scale * bits.view(np.float16).astype(np.float64)
    np.testing.assert_allclose(found, inputs.numpy(), rtol=1e-3, atol=1e-7 * 3e30)
    nothing, one = halves(torch.zeros(2, 3))
    assert not nothing.any()
    assert one == 1.0


def test_halves_of_many_samples_share_one_scale(monkeypatch):
    monkeypatch.setattr(sparse, "PART", 4)
    inputs = torch.ones(10, 2)
    inputs[9] = 2.0**20
    bits, scale = halves(inputs)
    assert scale == 2.0**6
    assert np.array_equal(bits.view(np.float16)[:, 0], [2.0**-6] * 9 + [2.0**14])


@pytest.mark.parametrize("size", [1e-6, 1e-9])
def test_small_inputs_keep_three_digits_too(size):
    inputs = size * torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    bits, scale = halves(inputs)
    found = scale * torch.from_numpy(bits.view(np.float16)).double()
    assert (found - inputs.double()).norm() <= 1e-3 * inputs.double().norm()


def test_compiled_code_reads_every_half_as_numpy_does():
    @compiled
    def read(bits, found):
        for i in range(len(bits)):
            found[i] = half(bits[i])

    bits = np.arange(2**16, dtype=np.uint16)
    found = np.empty(2**16, dtype=np.float32)
    read(bits, found)
    expected = bits.view(np.float16)
    numbers = ~np.isnan(expected)
    assert np.array_equal(found[numbers], expected[numbers].astype(np.float32))
    assert np.isnan(found[~numbers]).all()


@given(st.integers(0, 10**6))
def test_significant_drops_only_what_is_small_beside_the_largest(seed):
    generator = torch.Generator().manual_seed(seed)
    delta = torch.randn(20, 7, generator=generator) * 10 ** -(
        4 * torch.rand(20, 7, generator=generator)
    )
    delta *= torch.rand(20, 7, generator=generator) < 0.7
    delta[3] = 0.0
    assert sparse.least_share(delta) == sparse.SIGNIFICANT
    samples, outputs = significant(delta, sparse.SIGNIFICANT)
    assert samples.dtype == outputs.dtype == torch.int64
    found = torch.zeros(20, 7, dtype=torch.bool)
    found[samples, outputs] = True
    largest = delta.abs().max(1, keepdim=True).values
    assert torch.equal(found, (delta.abs() >= sparse.SIGNIFICANT * largest) & (delta != 0))
    assert not found[3].any()
    full = (largest > 0).flatten()
    assert found[full, delta.abs().argmax(1)[full]].all()
    assert len(samples) == int(found.sum())  # none twice
    assert (samples.diff() >= 0).all()


def test_inputs_in_half_precision_are_shared():
    inputs = torch.randn(5, 3).half()
    bits, scale = halves(inputs)
    assert scale == 1.0
    inputs[0, 0] = 2.0
    assert bits.view(np.float16)[0, 0] == 2.0


def test_rows_are_whitened_part_by_part(monkeypatch):
    measured = measured_samples("many")
    found = ClassBlocks.of(measured, 1e-2)
    whole = found.whiten(measured.rows())
    monkeypatch.setattr("prunesampler.influence.blocks.PART", 77)
    parts = found.whiten(measured.rows())
    assert np.array_equal(whole.starts, parts.starts)
    assert np.array_equal(whole.outputs, parts.outputs)
    np.testing.assert_allclose(whole.values, parts.values, rtol=1e-6)


@pytest.mark.parametrize("name", [*LOSSES, "many", "huge"])
def test_whitened_sets_have_the_norm_of_the_inverse_blocks(name, monkeypatch):
    monkeypatch.setattr("prunesampler.influence.blocks.NEGLIGIBLE", 0.0)
    monkeypatch.setattr(sparse, "SIGNIFICANT", 0.0)
    monkeypatch.setattr(sparse, "MOST_ENTRIES", 10**6)
    measured = measured_samples(name)
    # Inputs that half precision holds exactly, since the dense side does not round.
    inputs = (measured.inputs / 2.0**12).half().to(measured.inputs) * 2.0**12
    measured = Measurements(measured.delta, inputs, measured.hessian, measured.losses)
    damping = 1e-2 * measured.mean_eigenvalue()
    rows = measured.rows()
    white = ClassBlocks.of(measured, damping).whiten(rows)
    assert len(white) == len(measured)
    flat, light = rows.flat().double(), dense_blocks(measured, LIGHT * damping)
    inverse = seen(measured, torch.linalg.inv(light))
    expected = torch.einsum("ni,ij,nj->n", flat, inverse, flat)
    torch.testing.assert_close(
        torch.from_numpy(white.squares()), expected, rtol=1e-2, atol=1e-4 * float(expected.mean())
    )
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 15, len(measured)):
        chosen = torch.randperm(len(measured), generator=generator)[:size]
        total = flat[chosen].sum(0)
        found = white.square(white.sum(chosen).numpy())
        assert found == pytest.approx(float(total @ inverse @ total), rel=1e-2)


def test_dropped_entries_hardly_change_the_norm_of_a_row(monkeypatch):
    torch.manual_seed(0)
    inputs, outputs = torch.randn(500, 30), 5 * torch.randn(500, 12)
    values, delta, hessian = CrossEntropy().derivatives(outputs, torch.arange(500) % 12)
    sharp = Measurements(delta, inputs, hessian, values)
    found, rows = ClassBlocks.of(sharp, 1e-2), sharp.rows()
    white = found.whiten(rows)
    assert len(white.values) < 0.5 * 12 * 500
    monkeypatch.setattr(sparse, "SIGNIFICANT", 0.0)
    monkeypatch.setattr(sparse, "MOST_ENTRIES", 10**6)
    every = found.whiten(rows)
    assert len(every.values) > 0.99 * 12 * 500
    share = torch.from_numpy(white.squares() / every.squares())
    assert 0.95 <= float(share.min()) <= float(share.max()) <= 1 + 1e-4


def test_estimates_for_single_samples_are_near_the_exact_ones():
    measured = cross_entropy_samples(400, 8, 20)
    damping = 0.1 * measured.mean_eigenvalue()
    rows = measured.rows()
    near, exact = (
        Influence.build(rows, made(damping=damping).factorise(measured)).sample_squares()
        for made in (BlockCurvature, ExactCurvature)
    )
    assert float((near / exact).log().abs().mean()) < 0.25
    assert np.corrcoef(near.log(), exact.log())[0, 1] > 0.95


def test_no_more_entries_are_kept_than_rows_have_room_for():
    """Where a model is unsure, all outputs pull: then the largest are kept, eight on average."""
    torch.manual_seed(0)
    delta = torch.randn(3000, 40).softmax(1)
    least = sparse.least_share(delta)
    assert least > sparse.SIGNIFICANT
    assert len(significant(delta, least)[0]) == pytest.approx(8 * 3000, rel=0.01)
