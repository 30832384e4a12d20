"""Known answers for the layer that is found, and for the gradients measured there."""

import copy
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset

from prunesampler import (
    BinaryCrossEntropy,
    Budget,
    CrossEntropy,
    InfluencePruner,
    SquaredError,
    anneal,
)
from prunesampler.influence.hessians import SoftmaxHessian
from prunesampler.measure.gradients import HeadGradients
from prunesampler.measure.heads import find_head

PER_TOKEN = r"pass losses=TokenCrossEntropy\(\) for a cross-entropy at every token"
torch.manual_seed(0)
ROWS, TOKENS, IMAGES = torch.randn(6, 8), torch.randn(6, 5, 8), torch.randn(6, 8, 4, 4)
LABELS = torch.arange(6) % 3
TOKEN_LABELS = torch.randint(0, 3, (6, 5))
PICKED = torch.tensor([0, 4, 2, 2, 1, 3])
SHARES = torch.rand(6, 5).softmax(1)
CLOSED = CrossEntropy()


def own(model, batch):
    outputs = model(batch[0])
    wide = torch.promote_types(outputs.dtype, torch.float32)
    return F.cross_entropy(outputs.to(wide), batch[1], reduction="none")


class Net(nn.Module):
    """A body, a head, and a function that runs them."""

    def __init__(self, run=None, head=None, **more):
        super().__init__()
        self.body, self.head = nn.Linear(8, 8), nn.Linear(8, 3) if head is None else head
        self._run = run or (lambda net, x: net.head(net.body(x).relu()))
        for name, value in more.items():
            setattr(self, name, value)

    def forward(self, x):
        return self._run(self, x)


def on_tokens(pool, head=None):
    return Net(lambda net, x: pool(net.head(net.body(x).tanh())), head)


def by_autograd(model, name, losses, batch):
    """Gradient and Hessian of every sample's loss by the layer's weight and bias, in float64."""
    model = copy.deepcopy(model).double()
    batch = [part.double() if part.is_floating_point() else part for part in batch]
    layer = model.get_submodule(name)
    by = [p.requires_grad_() for p in (layer.weight, getattr(layer, "bias", None)) if p is not None]

    def flat(value, **options):
        parts = torch.autograd.grad(value, by, retain_graph=True, materialize_grads=True, **options)
        return torch.cat([part.reshape(len(layer.weight), -1) for part in parts], dim=1)

    gradients = [flat(value, create_graph=True) for value in losses(model, batch)]
    hessians = [torch.stack([flat(number) for number in rows.flatten()]) for rows in gradients]
    return torch.stack(gradients).detach(), torch.stack(hessians).flatten(2)


def error(found, expected):
    """Largest relative difference over the samples."""
    difference = (found - expected).flatten(1).norm(dim=1)
    return float((difference / expected.flatten(1).norm(dim=1)).max())


def measured(model, batch, losses):
    """What is found and measured without a word of help, and the layer's name."""
    found = find_head(model.eval(), tuple(part[:2] for part in batch), losses, 2)
    return found, HeadGradients(found.name, losses)(model, batch)


def check(model, batch, losses, name, tolerance=1e-4):
    """Check layer, gradients and curvature."""
    head, found = measured(model, batch, losses)
    assert head.name == name
    gradients, hessians = by_autograd(model, name, losses, batch)
    assert error(found.delta[:, :, None] * found.inputs[:, None, :], gradients) < tolerance
    dense, a = found.hessian.dense(torch.eye(found.delta.shape[1]).to(found.delta)), found.inputs
    curvature = torch.einsum("nkl,nd,ne->nkdle", dense, a, a).reshape(hessians.shape)
    assert error(curvature, hessians) < 10 * tolerance
    return head, found


class Same(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T + self.bias


class Duck(nn.Module):
    """No nn.Linear, but computes what one does."""

    def __init__(self, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))
        if bias:
            self.bias = nn.Parameter(torch.randn(3))

    def forward(self, features):
        return F.linear(features, self.weight, getattr(self, "bias", None))


class Gated(nn.Module):
    """Squeeze and excitation: its linear layer is not the last, the convolution is."""

    def __init__(self):
        super().__init__()
        self.gate, self.head = nn.Linear(8, 8), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        gate = self.gate(x.mean((2, 3))).sigmoid()
        return self.head(x * gate[:, :, None, None]).mean((2, 3))


def halved_in_place(net, x):
    outputs = net.head(net.body(x))
    outputs /= 2
    return outputs


CONV, POOL = partial(nn.Conv2d, 8, 3, 1), partial(nn.AdaptiveAvgPool2d, 1)
SCORED = {
    "in place before it": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 3)),
        ROWS,
        "2",
    ),
    "in place behind it": (lambda: Net(halved_in_place), ROWS, "head"),
    "in-place activation behind it": (
        lambda: nn.Sequential(nn.Linear(8, 3), nn.ELU(inplace=True)),
        ROWS,
        "0",
    ),
    "own forward": (lambda: Net(head=Same(8, 3)), ROWS, "head"),
    "no nn.Linear": (lambda: Net(head=Duck(bias=True)), ROWS, "head"),
    "no nn.Linear, no bias": (lambda: Net(head=Duck(bias=False)), ROWS, "head"),
    "called by name": (
        lambda: Net(lambda net, x: net.head(features=x), Duck(bias=True)),
        ROWS,
        "head",
    ),
    "temperature": (lambda: Net(lambda net, x: net.head(net.body(x)) / 2), ROWS, "head"),
    "log-softmax": (lambda: Net(lambda net, x: net.head(x).log_softmax(1)), ROWS, "head"),
    "soft cap": (lambda: Net(lambda net, x: 2 * (net.head(x) / 2).tanh()), ROWS, "head"),
    "some of its outputs": (
        lambda: Net(lambda net, x: net.head(x)[:, [3, 0, 2]], nn.Linear(8, 5)),
        ROWS,
        "head",
    ),
    "convolution, pooled before": (
        lambda: nn.Sequential(POOL(), CONV(), nn.Flatten()),
        IMAGES,
        "1",
    ),
    "convolution, pooled after": (lambda: nn.Sequential(CONV(), POOL(), nn.Flatten()), IMAGES, "0"),
    "convolution, ELU, one position": (
        lambda: nn.Sequential(CONV(), nn.ELU(inplace=True), POOL(), nn.Flatten()),
        IMAGES[:, :, :1, :1],
        "0",
    ),
    "convolution along time": (
        lambda: nn.Sequential(nn.Conv1d(8, 3, 1), nn.AdaptiveAvgPool1d(1), nn.Flatten()),
        TOKENS.mT,
        "0",
    ),
    "convolution behind a gate": (Gated, IMAGES, "head"),
    "last token": (lambda: on_tokens(lambda z: z[:, -1]), TOKENS, "head"),
    "one token each": (
        lambda: on_tokens(lambda z: z[torch.arange(len(z)), PICKED[: len(z)]]),
        TOKENS,
        "head",
    ),
    "mean over tokens": (lambda: on_tokens(lambda z: z.mean(1)), TOKENS, "head"),
    "masked mean": (
        lambda: on_tokens(lambda z: (SHARES[: len(z), :, None].to(z) * z).sum(1)),
        TOKENS,
        "head",
    ),
    "channels last": (
        lambda: on_tokens(lambda z: z.mean((1, 2))),
        IMAGES.permute(0, 2, 3, 1),
        "head",
    ),
}


@pytest.mark.parametrize("losses", [CLOSED, own], ids=["closed form", "own loss"])
@pytest.mark.parametrize("case", SCORED)
def test_gradients_and_curvature_equal_automatic_differentiation(case, losses):
    torch.manual_seed(0)
    build, inputs, name = SCORED[case]
    head, found = check(build(), (inputs, LABELS), losses, name)
    assert head.beside == ()
    assert torch.equal(found.labels, LABELS)


@pytest.mark.parametrize(
    "case", ["mean over tokens", "masked mean", "convolution, pooled after", "temperature"]
)
def test_a_weighted_sum_of_outputs_has_a_closed_form(case):
    build, inputs, name = SCORED[case]
    assert isinstance(
        HeadGradients(name, CLOSED)(build(), (inputs, LABELS)).hessian, SoftmaxHessian
    )


@pytest.mark.parametrize("losses", [CLOSED, own], ids=["closed form", "own loss"])
@pytest.mark.parametrize("case", ["in place before it", "masked mean", "convolution, pooled after"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 3e-3), (torch.float64, 1e-12)]
)
def test_precisions(dtype, tolerance, case, losses):
    torch.manual_seed(0)
    build, inputs, name = SCORED[case]
    _, found = check(build().to(dtype), (inputs.to(dtype), LABELS), losses, name, tolerance)
    assert found.delta.dtype == torch.promote_types(dtype, torch.float32)


def test_under_autocast_weights_of_positions_are_rounded():
    torch.manual_seed(0)
    build, inputs, name = SCORED["masked mean"]
    with torch.autocast("cpu", torch.bfloat16):
        check(build(), (inputs, LABELS), own, name, 3e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_batch_is_converted_to_the_precision_of_the_model(dtype):
    model = Net().to(dtype)
    found = HeadGradients("head", CLOSED)(model, (ROWS, LABELS))
    assert torch.equal(
        found.delta, HeadGradients("head", CLOSED)(model, (ROWS.to(dtype), LABELS)).delta
    )


def test_easy_samples_keep_the_weights_of_their_positions():
    model = on_tokens(lambda z: z.mean(1))
    with torch.no_grad():
        model.head.bias[0] += 60  # the gradient's square is no number in float32
    found = HeadGradients("head", own)(model, (TOKENS, torch.zeros(6, dtype=torch.int64)))
    expected = model.body(TOKENS).tanh().mean(1).detach()
    torch.testing.assert_close(found.inputs[:, :-1], expected)


class FakeQuantised(nn.Linear):
    def forward(self, x):
        step = float(self.weight.detach().abs().max()) / 127
        weight = torch.fake_quantize_per_tensor_affine(self.weight.float(), step, 0, -128, 127)
        return F.linear(x, weight.to(x), self.bias)


@pytest.mark.parametrize("losses", [CLOSED, own], ids=["closed form", "own loss"])
def test_a_fake_quantised_weight_is_within_rounding(losses):
    torch.manual_seed(0)
    check(Net(head=FakeQuantised(8, 3)), (ROWS, LABELS), losses, "head", 1e-2)


def adapted(**options):
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = peft.get_peft_model(Net(), peft.LoraConfig(r=2, **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize(
    ("options", "name", "beside"),
    [
        ({"target_modules": ["body", "head"]}, "lora_B.default", []),
        (
            {"target_modules": ["body", "head"], "bias": "all"},
            "lora_B.default",
            ["base_layer.bias"],
        ),
        ({"target_modules": ["body"], "modules_to_save": ["head"]}, "modules_to_save.default", []),
    ],
    ids=["LoRA", "LoRA and biases", "saved"],
)
@pytest.mark.parametrize("losses", [CLOSED, own], ids=["closed form", "own loss"])
def test_the_trained_part_of_an_adapted_head_is_measured(options, name, beside, losses):
    place = "base_model.model.head"
    head, _ = check(adapted(**options), (ROWS, LABELS), losses, f"{place}.{name}")
    assert head.beside == tuple(f"{place}.{part}" for part in beside)


def test_a_copy_in_which_nothing_is_trained_is_measured():
    average = Net().requires_grad_(False)
    check(average, (ROWS, LABELS), CLOSED, "head")
    assert not any(p.requires_grad for p in average.parameters())


class Cosine(nn.Linear):
    def forward(self, x):
        return F.linear(F.normalize(x), F.normalize(self.weight))


class TokenLoss:
    """A loss at every token, averaged."""

    def __init__(self, loss):
        self.loss = loss

    def __call__(self, model, batch):
        outputs = model(batch[0])
        width = outputs.shape[2]
        if width > 1:
            outputs, targets = outputs.transpose(1, 2), batch[1] % width
        else:
            outputs, targets = outputs[..., 0], (batch[1] % 2).float()
        return self.loss(outputs, targets, reduction="none").mean(1)


def token_head(classes, zero=False):
    torch.manual_seed(0)
    model = on_tokens(lambda z: z, nn.Linear(8, classes))
    if zero:
        nn.init.zeros_(model.head.weight)
        nn.init.zeros_(model.head.bias)
    return model


def exponential(outputs, targets, reduction):
    del targets, reduction
    return outputs.exp()


ONE_LABEL = LABELS[:, None].expand(6, 5)
CROSS, YES_NO = TokenLoss(F.cross_entropy), TokenLoss(F.binary_cross_entropy_with_logits)
NOT_ALIGNED = rf"layer 'head' is applied at 5 positions .*{PER_TOKEN}.*head="
PER_TOKEN_LOSSES = {
    "3 classes": (token_head(3), TOKEN_LABELS, CROSS, NOT_ALIGNED),
    "2 classes": (token_head(2), TOKEN_LABELS, CROSS, NOT_ALIGNED),
    "1 output": (token_head(1), TOKEN_LABELS, YES_NO, NOT_ALIGNED),
    "1 output, squares": (token_head(1), TOKEN_LABELS, TokenLoss(F.mse_loss), NOT_ALIGNED),
    "3 classes before training": (token_head(3, zero=True), ONE_LABEL, CROSS, NOT_ALIGNED),
    "2 classes before training": (token_head(2, zero=True), ONE_LABEL, CROSS, NOT_ALIGNED),
    "gradient as large as the curvature": (
        token_head(1),
        TOKEN_LABELS,
        TokenLoss(exponential),
        NOT_ALIGNED,
    ),
    "closed binary": (token_head(1), TOKEN_LABELS % 2, BinaryCrossEntropy(), NOT_ALIGNED),
    "closed squares": (token_head(1), TOKEN_LABELS.float(), SquaredError(), NOT_ALIGNED),
    "closed cross-entropy": (token_head(3), TOKEN_LABELS, CLOSED, rf"\(2, 5, 3\): {PER_TOKEN}"),
    "unreduced": (
        token_head(3),
        TOKEN_LABELS,
        lambda m, b: F.cross_entropy(m(b[0]).mT, b[1], reduction="none"),
        rf"got \(2, 5\), one per token, position or output: {PER_TOKEN}; average over",
    ),
}


@pytest.mark.parametrize("case", PER_TOKEN_LOSSES)
def test_losses_per_token_are_refused(case):
    model, labels, losses, message = PER_TOKEN_LOSSES[case]
    with pytest.raises(ValueError, match=message):
        measured(model, (TOKENS, labels), losses)


def contrastive(model, batch):
    features = F.normalize(model(batch[0]))
    return F.cross_entropy(
        features @ features.T, torch.arange(len(features)).roll(1), reduction="none"
    )


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return torch.nn.utils.weight_norm(layer)


def frozen(part):
    model = Net()
    part(model).requires_grad_(False)
    return model


def tied():
    model = Net(head=nn.Linear(8, 8))
    model.body.weight = model.head.weight
    return model


COMPUTED = r"the weight of layer 'head' is computed from other parameters.*head=.*gradients="
FROZEN = r"layer 'head' is frozen.*head="
RELU = nn.Sequential(CONV(), nn.ReLU(), POOL(), nn.Flatten())
REFUSED = {
    "another form": (
        Net(head=Cosine(8, 3)),
        ROWS,
        CLOSED,
        r"'head' \(Cosine\) does not return.*head=",
    ),
    "frozen": (frozen(lambda net: net.head), ROWS, CLOSED, FROZEN),
    "only its bias is trained": (frozen(lambda net: net.head.weight), ROWS, CLOSED, FROZEN),
    "weight norm": (
        Net(head=nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))),
        ROWS,
        CLOSED,
        COMPUTED,
    ),
    "old weight norm": (Net(head=old_weight_norm(nn.Linear(8, 3))), ROWS, CLOSED, COMPUTED),
    "shared": (
        tied(),
        ROWS,
        CLOSED,
        r"layer 'head' shares its weight with 'body.weight'.*untie.*head=",
    ),
    "runs twice": (
        Net(lambda net, x: net.head(net.head(x)), nn.Linear(8, 8)),
        ROWS,
        CLOSED,
        "'head' runs more than once",
    ),
    "ReLU before pooling": (
        RELU,
        IMAGES,
        CLOSED,
        rf"'0' is applied at 16 positions.*{PER_TOKEN}.*head=",
    ),
    "ReLU before pooling, own loss": (
        RELU,
        IMAGES,
        own,
        rf"'0' is applied at 16 positions.*{PER_TOKEN}",
    ),
    "largest of the positions": (on_tokens(lambda z: z.amax(1)), TOKENS, CLOSED, NOT_ALIGNED),
    "tokens as rows": (
        Net(lambda net, x: net.head(x.flatten(0, 1)).view(-1, 5, 3).mean(1)),
        TOKENS,
        CLOSED,
        "'head'.*30 rows",
    ),
    "multiple choice": (
        Net(lambda net, x: net.head(x.flatten(0, 1)).view(-1, 5), nn.Linear(8, 1)),
        TOKENS,
        CLOSED,
        "'head'.*30 rows",
    ),
    "tokens first": (
        Net(lambda net, x: net.head(x.transpose(0, 1))[0]),
        TOKENS,
        own,
        "'head'.*5 rows",
    ),
    "contrastive": (Net(), ROWS, contrastive, "layer 'head'.*other samples"),
    "batch statistics behind it": (
        nn.Sequential(nn.Linear(8, 3), nn.BatchNorm1d(3, affine=False, track_running_stats=False)),
        ROWS,
        CLOSED,
        "layer '0'.*other samples",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_such_gradient_is_refused_by_name(case):
    model, inputs, losses, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        measured(model, (inputs, LABELS), losses)


def pruner(inputs=ROWS, **options):
    data = TensorDataset(inputs.repeat(2, *[1] * (inputs.dim() - 1)), LABELS.repeat(2))
    return InfluencePruner(data, budget=Budget(count=2, min_per_class=0), progress=False, **options)


class ArcFace(nn.Module):
    """Its classifier is a bare parameter."""

    def __init__(self):
        super().__init__()
        self.body, self.weight = nn.Linear(8, 8), nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return 8 * F.linear(F.normalize(self.body(x)), F.normalize(self.weight))


@pytest.mark.parametrize(
    ("model", "layer", "beside"),
    [
        (ArcFace(), "body", "weight"),
        (nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3)), "0", "1.weight, 1.bias"),
        (
            Net(lambda net, x: net.head(x) * net.scale, scale=nn.Parameter(torch.ones(()))),
            "head",
            "scale",
        ),
        (
            Net(lambda net, x: net.head(x) + x @ net.way, way=nn.Parameter(torch.ones(8, 3))),
            "head",
            "way",
        ),
    ],
    ids=["bare parameter", "norm", "scale", "way around it"],
)
def test_trained_parameters_behind_the_layer_are_named(model, layer, beside):
    with pytest.warns(
        UserWarning, match=f"layer '{layer}' is measured, but the trained parameters {beside} lie"
    ):
        pruner().check(model)
    with warnings.catch_warnings():  # once is enough, and a layer that was chosen is no surprise
        warnings.simplefilter("error")
        pruner(head=layer).check(model)


def test_a_weight_that_is_normalised_on_the_way_and_happens_to_have_norm_one():
    torch.manual_seed(0)
    model = Net(lambda net, x: 8 * net.head(F.normalize(net.body(x))), Cosine(8, 3, bias=False))
    with torch.no_grad():
        model.head.weight.copy_(F.normalize(model.head.weight))
    with pytest.raises(ValueError, match="layer 'head'.*another gradient"):
        pruner().check(model)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((ROWS, LABELS), LABELS),
        ([ROWS, LABELS, "more"], None),
        ({"x": ROWS, "labels": LABELS}, LABELS),
        ({"x": ROWS, "label": LABELS[:, None].to(torch.uint8)}, LABELS),
        ({"x": ROWS, "target": LABELS}, LABELS),
        ((ROWS, LABELS.float()), None),
        ((ROWS, TOKEN_LABELS), None),
        ((ROWS, LABELS + 1), None),
        ((ROWS, LABELS - 1), None),
        ({"x": ROWS}, None),
    ],
)
def test_own_losses_find_the_classes_in_the_batch(batch, expected):
    inputs = batch["x"] if isinstance(batch, dict) else batch[0]
    losses = lambda model, _: F.cross_entropy(model(inputs), LABELS, reduction="none")  # noqa: E731
    found = HeadGradients("head", losses)(Net(), batch).labels
    assert found is None if expected is None else torch.equal(found, expected)


def test_yes_and_no_at_one_output_are_two_classes():
    answers = torch.tensor([0, 1, 1, 0, 1, 0])

    def binary(model, batch):
        outputs = model(batch[0])[:, 0]
        return F.binary_cross_entropy_with_logits(outputs, batch[1].float(), reduction="none")

    found = HeadGradients("head", binary)(Net(head=nn.Linear(8, 1)), (ROWS, answers))
    assert torch.equal(found.labels, answers)


@pytest.mark.filterwarnings("ignore:.*no better chosen than at random:UserWarning")
@pytest.mark.parametrize("key", [None, "labels", "label"])
def test_floors_per_class_hold_with_own_losses(key):
    def losses(model, batch):
        inputs, labels = batch if key is None else (batch["x"], batch[key])
        return F.cross_entropy(model(inputs), labels, reduction="none")

    classes = torch.tensor([0] * 8 + [1, 1, 2, 2])
    rows = list(zip(torch.randn(12, 8), classes, strict=True))
    data = rows if key is None else [{"x": x, key: y} for x, y in rows]
    budget, solver = Budget(count=9, min_per_class=1), partial(anneal, moves=1000)
    chosen = InfluencePruner(data, budget=budget, losses=losses, solver=solver, progress=False)
    assert sorted(classes[chosen.select(Net()).kept].tolist()) == [0, 1, 2]


def test_a_loss_that_has_no_second_derivative_in_torch():
    hinge = lambda m, b: F.multi_margin_loss(m(b[0]), b[1], p=2, reduction="none")  # noqa: E731
    with pytest.raises(ValueError, match=r"cannot be differentiated twice by .* 'head' \(.*closed"):
        HeadGradients("head", hinge)(Net(), (ROWS, LABELS))
