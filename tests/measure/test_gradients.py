import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunesampler import BinaryCrossEntropy, CrossEntropy, HeadGradients, SquaredError
from prunesampler.influence.hessians import DenseHessian, SoftmaxHessian
from prunesampler.measure.heads import find_head

LOSS = CrossEntropy()


WEIGHT = torch.linspace(0.5, 2, 4)


def by_vmap(model, head, reference, batch):
    """Per-sample gradients of the layer's weight and bias, from torch.func."""
    inputs = {}
    handle = head.register_forward_hook(lambda m, a, o: inputs.update(a=a[0].detach()))
    with torch.no_grad():
        model(batch[0])
    handle.remove()

    def single(parameters, a, y):
        return reference(F.linear(a, parameters["weight"], parameters.get("bias")), y)

    parameters = {k: v.detach() for k, v in head.named_parameters()}
    gradient = torch.func.vmap(torch.func.grad(single), (None, 0, 0))
    found = gradient(parameters, inputs["a"], batch[1])
    columns = [found["weight"]] + ([found["bias"][:, :, None]] if "bias" in found else [])
    return torch.cat(columns, dim=2)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("loss", "reference", "targets"),
    [
        (
            CrossEntropy(label_smoothing=0.1, weight=WEIGHT),
            lambda z, y: F.cross_entropy(z, y, WEIGHT, label_smoothing=0.1, reduction="none"),
            torch.arange(20) % 4,
        ),
        (
            BinaryCrossEntropy(),
            F.binary_cross_entropy_with_logits,
            (torch.arange(80).reshape(20, 4) % 2).float(),
        ),
        (SquaredError(), F.mse_loss, torch.linspace(-1, 1, 80).reshape(20, 4)),
    ],
    ids=["softmax", "binary", "squares"],
)
def test_delta_and_inputs_equal_vmap_grad(loss, reference, targets, bias):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=bias))
    batch = (torch.randn(20, 6), targets)
    found = HeadGradients("2", loss)(model, batch)
    product = found.delta[:, :, None] * found.inputs[:, None, :]
    expected = by_vmap(model, model[2], reference, batch)
    torch.testing.assert_close(product, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.losses, loss(model, batch).detach())


def test_any_loss_is_differentiated_automatically(model, few_digits):
    batch = few_digits[:]
    model.eval()
    closed = HeadGradients("4", LOSS)(model, batch)
    automatic = HeadGradients("4", lambda m, b: F.cross_entropy(m(b[0]), b[1], reduction="none"))(
        model, batch
    )
    assert isinstance(closed.hessian, SoftmaxHessian)
    assert isinstance(automatic.hessian, DenseHessian)
    torch.testing.assert_close(automatic.delta, closed.delta, rtol=1e-4, atol=1e-6)
    identity = torch.eye(10)
    torch.testing.assert_close(
        automatic.hessian.dense(identity), closed.hessian.dense(identity), rtol=1e-4, atol=1e-6
    )


class Tempered(nn.Module):
    """A model whose output is not its last layer's output."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return 3 * self.head(x)


def test_a_closed_form_is_used_behind_a_scale_and_not_behind_other_operations(few_digits):
    batch = few_digits[:]
    model = Tempered()
    found = HeadGradients("head", LOSS)(model, batch)
    assert isinstance(found.hessian, SoftmaxHessian)
    expected = LOSS.derivatives(model(batch[0]).detach(), batch[1]).delta
    torch.testing.assert_close(found.delta, expected, rtol=1e-4, atol=1e-6)
    ones = torch.ones(len(batch[0]), 1)
    scaled = 3 * torch.cat([batch[0], ones], 1)
    torch.testing.assert_close(found.inputs, scaled[:, : found.inputs.shape[1]])
    behind = HeadGradients("0", LOSS)(nn.Sequential(nn.Linear(64, 10), nn.Tanh()), batch)
    assert isinstance(behind.hessian, DenseHessian)
    assert torch.equal(found.labels, batch[1])


def test_piecewise_linear_losses_have_no_curvature(few_digits):
    batch = few_digits[:]
    model = nn.Linear(64, 1)
    wrap = nn.Sequential(model)
    found = HeadGradients("0", lambda m, b: (m(b[0])[:, 0] - b[1]).abs())(wrap, batch)
    assert found.hessian.values.abs().max() == 0
    assert set(found.delta.unique().tolist()) <= {-1.0, 1.0}


def test_under_autocast_the_layer_runs_in_full_precision(few_digits):
    batch = few_digits[:]
    model = nn.Sequential(nn.Linear(64, 10))
    plain = HeadGradients("0", LOSS)(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        cast = HeadGradients("0", LOSS)(model, batch)
    assert cast.delta.dtype == torch.float32
    torch.testing.assert_close(cast.delta, plain.delta, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind(model, few_digits):
    model.eval()
    HeadGradients("4", LOSS)(model, few_digits[:])
    find_head(model, few_digits[:4], LOSS, 4)
    assert all(not m._forward_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert torch.is_grad_enabled()


def test_hooks_go_when_the_forward_pass_fails(model):
    with pytest.raises(RuntimeError):
        HeadGradients("4", LOSS)(model, (torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)))
    assert all(not m._forward_hooks for m in model.modules())
    assert torch.is_grad_enabled()


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.left, self.right = nn.Linear(64, 8), nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        features = self.body(x).relu()
        return self.left(features) + self.right(features)


def test_the_last_linear_layer_is_found(model, few_digits):
    assert find_head(model, few_digits[:2], LOSS, 2).name == "4"
    assert find_head(Tempered(), few_digits[:2], LOSS, 2).name == "head"


def test_a_linear_layer_that_runs_beside_the_path_is_not_the_head(few_digits):
    class Auxiliary(Tempered):
        def __init__(self):
            super().__init__()
            self.probe = nn.Linear(64, 3)

        def forward(self, x):
            out = self.head(x)
            self.probe(x)  # runs last, leads nowhere
            return out

    assert find_head(Auxiliary(), few_digits[:2], LOSS, 2).name == "head"


def test_two_heads_that_cannot_be_told_apart_are_both_named(few_digits):
    with pytest.raises(ValueError, match=r"\['left', 'right'\].*head="):
        find_head(TwoHeads(), few_digits[:2], LOSS, 2)
    HeadGradients("left", LOSS)(TwoHeads(), few_digits[:])  # chosen, it works


def test_no_linear_layer(few_digits):
    model = nn.Sequential(nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 10, 64), nn.Flatten())
    with pytest.raises(ValueError, match="no linear layer leads to the loss"):
        find_head(model, few_digits[:2], LOSS, 2)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 64)

    def forward(self, x):
        return self.head(self.head(x))


class PerToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        return self.head(x.view(-1, 8, 8)).tanh().mean(1)


class Cosine(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x):
        return 10 * F.linear(F.normalize(x), F.normalize(self.weight))


def hooked():
    model = nn.Sequential(nn.Linear(64, 10))
    model[0].register_forward_hook(lambda layer, args, output: output * 2)
    return model


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x):
        return self.head(input=x)


def test_inputs_given_by_name(few_digits):
    model = ByName()
    found = HeadGradients(find_head(model, few_digits[:2], LOSS, 2).name, LOSS)(
        model, few_digits[:2]
    )
    assert torch.equal(found.inputs[:, :-1], few_digits[:2][0])


@pytest.mark.parametrize(
    ("model", "head", "loss", "error", "message"),
    [
        (Twice(), "head", LOSS, ValueError, "'head' runs more than once"),
        (PerToken(), "head", LOSS, ValueError, "is applied at 8 positions of each sample"),
        (TwoHeads(), "middle", LOSS, ValueError, r"no layer 'middle'.*'body', 'left', 'right'"),
        (nn.Sequential(nn.ReLU()), "0", LOSS, TypeError, "'0' is ReLU, which has no weight matrix"),
        (nn.Sequential(Cosine(64, 10)), "0", LOSS, ValueError, r"'0' \(Cosine\) does not"),
        (hooked(), "0", LOSS, ValueError, r"'0' \(Linear\) does not return its weight times"),
        (TwoHeads(), "left", lambda m, b: m(b[0]).sum().item(), ValueError, "got float"),
        (TwoHeads(), nn.Linear(2, 2), LOSS, ValueError, "no layer Linear"),
        (
            TwoHeads(), "left", lambda m, b: F.cross_entropy(m(b[0]), b[1]),
            ValueError, r"shape \(2,\), got \(\).*reduction=\"none\"",
        ),
        (TwoHeads(), "left", lambda m, b: float(m(b[0]).detach().sum()), ValueError, r"shape \(2,\), got float"),
        (
            TwoHeads(), "left", lambda m, b: m(b[0]).detach().sum(1),
            ValueError, "do not depend on the output of layer 'left'",
        ),
        (
            TwoHeads(), "left", lambda m, b: m.body(b[0]).sum(1),
            ValueError, "'left' did not run",
        ),
    ],
)  # fmt: skip
def test_wrong_heads_and_losses(model, head, loss, error, message, few_digits):
    with pytest.raises(error, match=message):
        HeadGradients(head, loss)(model, few_digits[:2])


def test_too_many_outputs_for_automatic_hessians():
    model = nn.Sequential(nn.Linear(2, 200))
    batch = (torch.zeros(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="200 x 200 numbers per sample"):
        HeadGradients("0", lambda m, b: m(b[0]).square().sum(1))(model, batch)
