"""The factor of a cross-entropy is found from its gradients; other losses are not taken for one."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesampler.train.errors import BATCHES, Pool, Units, scales_of


def outputs_of(size=64, classes=10, spread=1.0, seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    outputs = (spread * torch.randn(size, classes)).to(dtype).requires_grad_()
    return outputs, torch.randint(0, classes, (size,))


def scaled(outputs, loss):
    loss.backward()
    return scales_of(outputs.detach()[None], outputs.grad[None])


def errors_of(units, outputs, gradients):
    found = units.errors(outputs.detach()[None], gradients[None])
    return None if found is None else found[0]


MIX = torch.rand(64, 1, generator=torch.Generator().manual_seed(1))
LOSSES = {
    "mean": (lambda z, y: F.cross_entropy(z, y), 1 / 64),
    "sum": (lambda z, y: F.cross_entropy(z, y, reduction="sum"), 1),
    "accumulated": (lambda z, y: F.cross_entropy(z, y) / 8, 1 / 512),
    "loss scaler": (lambda z, y: F.cross_entropy(z, y) * 65536, 1024),
    "label smoothing": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.2), 1 / 64),
    "strong smoothing": (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.4), 1 / 64),
    "mixup": (
        lambda z, y: 0.3 * F.cross_entropy(z, y) + 0.7 * F.cross_entropy(z, y.flip(0)), 1 / 64,
    ),
    "soft targets": (
        lambda z, y: F.cross_entropy(z, 0.9 * F.one_hot(y, 10) + 0.1 * F.one_hot(y.flip(0), 10).float()), 1 / 64,
    ),
    "log_softmax and nll": (lambda z, y: F.nll_loss(z.log_softmax(1), y), 1 / 64),
}  # fmt: skip


@pytest.mark.parametrize("spread", [0.05, 1.0, 5.0])
@pytest.mark.parametrize("name", LOSSES)
def test_a_cross_entropy_in_any_form(name, spread):
    loss, factor = LOSSES[name]
    outputs, labels = outputs_of(spread=spread)
    scale = scaled(outputs, loss(outputs, labels))
    assert bool(scale.tells)
    second = name in ("mixup", "soft targets")  # a second class may lie off the line
    assert bool(scale.fits) or second
    if scale.fits:
        assert float(scale.factor) == pytest.approx(factor, rel=0.05 if second else 1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [0.3, 2.0])
def test_outputs_in_half_precision(dtype, spread):
    outputs, labels = outputs_of(spread=spread, dtype=dtype, size=256)
    scale = scaled(outputs, F.cross_entropy(outputs.float(), labels) * 1024)
    assert bool(scale.tells)
    assert bool(scale.fits)
    assert float(scale.factor) == pytest.approx(4, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_that_are_all_alike_do_not_tell(dtype):
    outputs, labels = outputs_of(spread=0.0, dtype=dtype)
    scale = scaled(outputs, F.cross_entropy(outputs.float(), labels))
    assert not bool(scale.tells)
    assert errors_of(Units(), outputs, outputs.grad) is None


def test_two_classes_and_tokens():
    outputs, labels = outputs_of(classes=2)
    scale = scaled(outputs, F.cross_entropy(outputs, labels))
    assert bool(scale.fits)
    assert float(scale.factor) == pytest.approx(1 / 64, rel=1e-3)
    tokens = torch.randn(8, 5, 30, requires_grad=True)
    targets = torch.randint(0, 30, (8, 5))
    targets[:, 3:] = -100
    scale = scaled(tokens, F.cross_entropy(tokens.flatten(0, 1), targets.flatten()))
    assert bool(scale.fits)
    assert float(scale.factor) == pytest.approx(1 / 24, rel=1e-3)


def test_many_tokens_of_a_large_vocabulary_most_of_which_are_ignored():
    torch.manual_seed(0)
    tokens = torch.randn(8, 100, 5000, requires_grad=True)
    targets = torch.full((8, 100), -100)
    targets[:, 97:] = torch.randint(0, 5000, (8, 3))
    scale = scaled(tokens, F.cross_entropy(tokens.flatten(0, 1), targets.flatten()))
    assert bool(scale.tells)
    assert bool(scale.fits)
    assert float(scale.factor) == pytest.approx(1 / 24, rel=1e-3)


def test_weights_of_classes_in_a_large_batch():
    outputs, labels = outputs_of(20_000)
    loss = F.cross_entropy(outputs, labels, weight=torch.logspace(-1, 1, 10))
    assert not bool(scaled(outputs, loss).fits)


@settings(max_examples=40)
@given(
    st.integers(1, 40), st.integers(2, 50), st.floats(0.2, 8), st.integers(0, 99),
    st.floats(-6, 6),
)  # fmt: skip
def test_of_any_size(size, classes, spread, seed, power):
    outputs, labels = outputs_of(size, classes, spread, seed)
    scale = scaled(outputs, F.cross_entropy(outputs, labels) * 10**power)
    if size * (classes - 1) >= 8:
        assert bool(scale.fits)
        assert float(scale.factor) == pytest.approx(10**power / size, rel=1e-2)


def test_a_network_that_is_nearly_certain():
    outputs, labels = outputs_of()
    with torch.no_grad():
        outputs.copy_(outputs + 12 * F.one_hot(labels, 10))
    units = Units()
    assert errors_of(units, *trained(outputs_of())) is not None
    F.cross_entropy(outputs, labels).backward()
    found = errors_of(units, outputs.detach(), outputs.grad)
    truth = (outputs.double().softmax(1) - F.one_hot(labels, 10)).norm(dim=1).float()
    assert torch.allclose(found, truth, rtol=0.02, atol=1e-7)


def trained(pair, loss=F.cross_entropy):
    outputs, labels = pair
    loss(outputs, labels).backward()
    return outputs.detach(), outputs.grad


OTHERS = {
    "temperature 2": lambda z, y: F.cross_entropy(z / 2, y),
    "temperature 1/10": lambda z, y: F.cross_entropy(z * 10, y),
    "squared error": lambda z, y: F.mse_loss(z, F.one_hot(y, 10).float()),
    "sigmoids": lambda z, y: F.binary_cross_entropy_with_logits(z, F.one_hot(y, 10).float()),
    "hinge": F.multi_margin_loss,
    "distillation": lambda z, y: F.cross_entropy(z, torch.randn(64, 10).mul(2).softmax(1)),
    "class weights": lambda z, y: F.cross_entropy(z, y, weight=torch.logspace(-2, 2, 10)),
    "ascent": lambda z, y: -F.cross_entropy(z, y),
    "focal": lambda z, y: ((1 - (p := z.log_softmax(1).gather(1, y[:, None])).exp()) ** 2 * -p).mean(),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_other_losses_are_not_taken_for_one(name):
    outputs, labels = outputs_of(spread=2.0)
    assert not bool(scaled(outputs, OTHERS[name](outputs, labels)).fits)
    units = Units()
    found = errors_of(units, outputs.detach(), outputs.grad)
    assert units.exact is False
    norms = outputs.grad.norm(dim=1)
    assert torch.allclose(found, norms / norms.mean())


@pytest.mark.parametrize("name", ["temperature 2", "temperature 1/10", "squared error"])
def test_nor_while_outputs_are_small(name):
    outputs, labels = outputs_of(spread=0.02)
    assert not bool(scaled(outputs, OTHERS[name](outputs, labels)).fits)


def test_one_output_and_maps_are_no_softmax():
    for shape in [(64, 1), (8, 4, 6, 6)]:
        outputs = torch.randn(shape, requires_grad=True)
        F.softplus(outputs).mean().backward()
        units = Units()
        assert errors_of(units, outputs.detach(), outputs.grad).mean() == pytest.approx(1, rel=1e-5)
        assert units.exact is False


def test_a_factor_that_changes_from_batch_to_batch():
    units = Units()
    for k in range(5):
        outputs, labels = outputs_of(64 - 9 * k, seed=k)
        found = errors_of(
            units, *trained((outputs, labels), lambda z, y, k=k: F.cross_entropy(z, y) * 10.0**k)
        )
        truth = (outputs.softmax(1) - F.one_hot(labels, 10)).norm(dim=1)
        assert torch.allclose(found, truth, rtol=1e-3)


@pytest.mark.parametrize("exact", [None, True, False])
def test_of_an_overflow_nothing_is_known(exact):
    units = Units(exact)
    outputs, gradients = trained(outputs_of())
    gradients[3, 2] = math.inf
    found = errors_of(units, outputs, gradients)
    assert found is None if exact is None else found.isnan().all()
    assert units.exact is exact
    good = errors_of(units, *trained(outputs_of(seed=2)))
    assert good.isfinite().all()


def test_no_gradient_at_all():
    assert errors_of(Units(False), torch.randn(4, 3), torch.zeros(4, 3)).tolist() == [0.0] * 4


def batches(count, sizes, seed=0):
    """Batches of a training whose loss scaler overflows once and changes its factor."""
    found = []
    for k in range(count):
        factor = 64.0 if k < count // 2 else 256.0
        outputs, gradients = trained(
            outputs_of(sizes[k % len(sizes)], seed=seed + k),
            lambda z, y, f=factor: f * F.cross_entropy(z, y),
        )
        if k == count // 2:
            gradients[0, 0] = math.inf
        found.append((outputs, gradients))
    return found


@pytest.mark.parametrize("sizes", [(64,), (64, 64, 64, 7), (500,), (5, 6)])
@pytest.mark.parametrize("exact", [None, True, False])
def test_batches_looked_at_together_give_what_each_one_gives(sizes, exact):
    trained_on, found = batches(3 * BATCHES + 2, sizes), {}
    pool = Pool(
        Units(exact), lambda samples, errors: found.update(zip(samples, errors, strict=True))
    )
    units, truth = Units(exact), []
    for turn, (outputs, gradients) in enumerate(trained_on):
        truth += errors_of(units, outputs, gradients).tolist()
        held, pulls = outputs.clone(), gradients.clone()
        pool.add([1000 * turn + i for i in range(len(held))], held, pulls)
        if turn:  # the first one's are needed at once
            held.zero_(), pulls.zero_()  # memory that is used again
    pool.empty()
    assert list(found) == sorted(found)
    assert torch.allclose(
        torch.stack([*found.values()]), torch.tensor(truth), rtol=1e-5, equal_nan=True
    )
    assert torch.tensor(truth).isnan().any()


def test_large_batches_are_not_held():
    seen = []
    pool = Pool(Units(True), lambda samples, errors: seen.append(samples))
    for k in range(2):
        pool.add([k, k + 9], torch.zeros(2, 200_000, 2), torch.zeros(2, 200_000, 2))
        assert len(seen) == k + 1
