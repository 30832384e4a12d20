import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesampler import BinaryCrossEntropy, CrossEntropy, SquaredError
from prunesampler.influence.hessians import helmert
from prunesampler.measure.losses import ClosedFormLoss, run_batch

torch.manual_seed(0)
OUTPUTS = torch.randn(12, 5, dtype=torch.float64)
LABELS = torch.randint(0, 5, (12,))
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.1], dtype=torch.float64)
YES_NO = torch.randint(0, 2, (12, 5)).double()

CASES = {
    "cross-entropy": (CrossEntropy(), LABELS, lambda z, y: F.cross_entropy(z, y)),
    "smoothing and weights": (
        CrossEntropy(weight=WEIGHT, label_smoothing=0.1),
        LABELS,
        # torch divides a mean by the weights; the sum over one sample is unreduced
        lambda z, y: F.cross_entropy(z, y, WEIGHT, label_smoothing=0.1, reduction="sum"),
    ),
    "class probabilities": (
        CrossEntropy(weight=WEIGHT, label_smoothing=0.2),
        torch.rand(12, 5, dtype=torch.float64).softmax(1),
        lambda z, y: F.cross_entropy(z, y, WEIGHT, label_smoothing=0.2, reduction="sum"),
    ),
    "binary": (
        BinaryCrossEntropy(),
        YES_NO,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y),
    ),
    "binary with weights": (
        BinaryCrossEntropy(pos_weight=WEIGHT),
        YES_NO,
        lambda z, y: F.binary_cross_entropy_with_logits(z, y, pos_weight=WEIGHT),
    ),
    "squared error": (
        SquaredError(),
        torch.randn(12, 5, dtype=torch.float64),
        lambda z, y: F.mse_loss(z, y),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_derivatives_equal_automatic_differentiation(case):
    loss, targets, reference = CASES[case]
    assert isinstance(loss, ClosedFormLoss)
    values, delta, hessian = loss.derivatives(OUTPUTS, targets)
    dense = hessian.dense(torch.eye(5, dtype=torch.float64))
    basis = hessian.basis()
    torch.testing.assert_close(hessian.total(), dense.sum(0), rtol=1e-6, atol=1e-9)
    for i in range(len(OUTPUTS)):

        def single(z, i=i):
            return reference(z[None], targets[i : i + 1])

        torch.testing.assert_close(values[i], single(OUTPUTS[i]))
        torch.testing.assert_close(delta[i], torch.func.grad(single)(OUTPUTS[i]))
        expected = torch.func.hessian(single)(OUTPUTS[i])
        torch.testing.assert_close(dense[i], expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            hessian.dense(basis)[i], basis.T @ expected @ basis, rtol=1e-6, atol=1e-9
        )
        # The basis loses nothing of the gradient.
        torch.testing.assert_close(basis @ (basis.T @ delta[i]), delta[i], rtol=1e-6, atol=1e-9)


def test_easy_samples_keep_their_small_gradient():
    outputs = torch.tensor([[30.0, 0.0, 1.0]])  # p_0 rounds to one in float32
    delta = CrossEntropy().derivatives(outputs, torch.tensor([0])).delta.double()
    p = outputs.double().softmax(1)
    expected = torch.tensor([[-float(p[0, 1] + p[0, 2]), float(p[0, 1]), float(p[0, 2])]])
    assert (outputs.softmax(1)[0, 0] - 1) == 0
    torch.testing.assert_close(delta, expected.double(), rtol=1e-5, atol=0)


def test_helmert_basis_is_orthonormal_and_sums_to_zero():
    for size in (2, 3, 10):
        basis = helmert(size)
        torch.testing.assert_close(basis.T @ basis, torch.eye(size - 1, dtype=torch.float64))
        assert basis.sum(0).abs().max() < 1e-14


def test_outputs_of_one_number_per_sample():
    flat = BinaryCrossEntropy().derivatives(OUTPUTS[:, :1], YES_NO[:, 0])
    square = BinaryCrossEntropy().derivatives(OUTPUTS[:, :1], YES_NO[:, :1])
    assert torch.equal(flat.delta, square.delta)
    assert flat.delta.shape == (12, 1)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((12,), 5), r"labels \[5\] are out of range.*5 outputs"),
        (torch.full((12,), -100), r"labels \[-100\] are out of range"),
        (
            torch.tensor([-100, *[1] * 9, -100, 0]),
            r"2 of these 12 samples have -100, torch's ignore_index: .*Subset\(",
        ),
        (torch.rand(12), r"got torch.float32 of shape \(12,\); .*for regression.*SquaredError"),
        (torch.rand(12, 1), r"got torch.float32 of shape \(12, 1\)"),
        (torch.zeros(12, 1, dtype=torch.int64), r"integers of shape \(12,\).*\(12, 1\)"),
    ],
)
def test_wrong_labels_are_named(targets, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropy().derivatives(OUTPUTS, targets)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        (
            torch.tensor([1.0, -0.5, 2.0]),
            ValueError,
            "class 1 is -0.5: the loss would not be convex; give",
        ),
        (
            torch.tensor([1.0, float("nan")]),
            ValueError,
            "class 1 is nan: the loss would not be finite",
        ),
        (torch.tensor([float("inf"), 1.0]), ValueError, "class 0 is inf: .* numbers of at least 0"),
        (
            torch.ones(2, 3),
            ValueError,
            r"of shape \(classes,\), got \(2, 3\); give one for each class",
        ),
        ([1.0, 2.0], TypeError, r"are a tensor, got \[1.0, 2.0\]; give one for each class"),
    ],
)
def test_wrong_class_weights_are_named_at_once(weight, error, message):
    with pytest.raises(error, match=message):
        CrossEntropy(weight=weight)


@pytest.mark.parametrize("targets", [LABELS, YES_NO.softmax(1)])
def test_class_weights_of_another_number_of_classes(targets):
    losses = CrossEntropy(weight=WEIGHT[:4])
    for work in (losses.values, losses.derivatives):
        with pytest.raises(ValueError, match="4 class weights, but the layer has 5 outputs; give"):
            work(OUTPUTS, targets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type(dtype):
    found = CrossEntropy().derivatives(OUTPUTS, LABELS.to(dtype))
    assert torch.equal(found.delta, CrossEntropy().derivatives(OUTPUTS, LABELS).delta)


def test_probabilities_in_place_of_logits():
    with pytest.raises(ValueError, match="returns probabilities.*leave out the softmax"):
        CrossEntropy().values(OUTPUTS.softmax(1), LABELS)


def test_one_row_of_logits_may_sum_to_one():
    row = torch.tensor([[0.2, 0.8]])
    assert CrossEntropy().derivatives(row, torch.tensor([0])).delta.shape == (1, 2)


def test_which_targets_are_classes():
    assert torch.equal(CrossEntropy().classes(LABELS), LABELS)
    assert CrossEntropy().classes(YES_NO) is None
    assert torch.equal(BinaryCrossEntropy().classes(YES_NO[:, :1]), YES_NO[:, 0].long())
    assert BinaryCrossEntropy().classes(YES_NO) is None
    assert SquaredError().classes(LABELS) is None


def test_one_output_is_no_classification():
    with pytest.raises(ValueError, match="at least 2 classes.*BinaryCrossEntropy"):
        CrossEntropy().values(OUTPUTS[:, :1], LABELS)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"outputs of shape \(batch, classes\)"):
        CrossEntropy().values(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"targets of shape \(12,\) do not fit"):
        SquaredError().derivatives(OUTPUTS, torch.zeros(12))


class Returns(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *args, **kwargs):
        return self.output


def test_batches_of_both_common_forms():
    logits = torch.zeros(2, 3)
    outputs, targets = run_batch(Returns(logits), (torch.zeros(2, 1), LABELS[:2]))
    assert outputs is logits
    assert torch.equal(targets, LABELS[:2])
    outputs, targets = run_batch(Returns({"logits": logits}), {"x": logits, "labels": LABELS[:2]})
    assert outputs is logits


@pytest.mark.parametrize("batch", [torch.zeros(2, 3), {"x": 1}, (1, 2, 3)])
def test_other_batches_ask_for_a_loss(batch):
    with pytest.raises(TypeError, match="pass losses="):
        run_batch(Returns(torch.zeros(2, 3)), batch)


def test_an_output_that_is_no_tensor_asks_for_a_loss():
    with pytest.raises(TypeError, match="returned tuple.*pass losses="):
        run_batch(Returns((1, 2)), (torch.zeros(2, 1), LABELS[:2]))
