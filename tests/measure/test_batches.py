from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prunesampler import BinaryCrossEntropy, CrossEntropy, SquaredError
from prunesampler.measure.batches import classes_in, content, outline, run_batch, to_device

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 2, 1])
MODEL = nn.Linear(3, 3)


def test_moving_batches():
    Pair = namedtuple("Pair", "x y")
    batch = {"a": [torch.ones(1)], "b": (Pair(torch.ones(1), "text"), 3)}
    moved = to_device(batch, torch.device("meta"))
    assert moved["a"][0].device.type == "meta"
    assert moved["b"][0].x.device.type == "meta"
    assert moved["b"][0].y == "text"
    assert moved["b"][1] == 3


class Attributes(dict):
    """A mapping whose keys are attributes too."""

    __getattr__ = dict.__getitem__


class MovesItself:
    def to(self, device):
        self.device = device


def test_moving_batches_of_other_kinds():
    batch = Attributes(x=torch.ones(1), inner=MovesItself())
    moved = to_device(batch, torch.device("meta"))
    assert moved.x.device.type == "meta"
    assert moved.inner.device.type == "meta"
    assert batch.x.device.type == "cpu"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ((torch.ones(2), 1), (torch.ones(2), 1), True),
        ((torch.ones(2), 1), (torch.zeros(2), 1), False),
        ({"x": np.ones(2)}, {"x": np.zeros(2)}, False),
        ({"x": 1}, {"y": 1}, False),
        ({"x": [1.0, "a"]}, {"x": [1.0, "b"]}, False),
        (float("nan"), float("nan"), True),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), True),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), True),
        (torch.ones(2, requires_grad=True), torch.ones(2), True),
        (torch.ones(2), torch.ones(3), False),
        (torch.ones(2, dtype=torch.int8), torch.zeros(2, dtype=torch.int8), False),
        (np.array([np.nan]), np.array([np.nan]), True),
        (np.array(["a"]), np.array(["b"]), False),
        (np.float32(1), np.float32(2), False),
        (Image.new("RGB", (2, 2)), Image.new("RGB", (2, 2), "red"), False),
        (Image.new("L", (2, 2)), Image.new("L", (2, 2)), True),
        (np.array(["a", [1]], dtype=object), np.array(["a", [1]], dtype=object), True),
        (np.array(["a", [1]], dtype=object), np.array(["a", [2]], dtype=object), False),
        (object(), object(), True),  # not judged
    ],
)
def test_comparing_items(first, second, same):
    assert (content(first) == content(second)) is same


def test_an_outline_knows_labels_and_shapes_and_not_pixels():
    assert outline((torch.ones(2, 3), 1)) == outline((torch.zeros(2, 3), 1))
    assert outline((torch.ones(2, 3), 1)) != outline((torch.ones(2, 3), 2))
    assert outline((torch.ones(2, 3), 1)) != outline((torch.ones(3, 3), 1))
    assert outline({"image": Image.new("L", (2, 2)), "label": 1}) != outline({"label": 1})


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x, scale=1.0):
        return {"logits": self.layer(x)}


class NoForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)


@pytest.mark.parametrize(
    ("model", "batch", "message"),
    [
        (MODEL, (X, Y, Y), "got tuple of length 3; pass losses=CrossEntropy\\(run="),
        (MODEL, {"x": X, "y": Y}, "got dict with keys \\['x', 'y'\\]; pass losses="),
        (MODEL, (X, ("a", "b", "a", "c")), "targets are a tuple of str, not a tensor; number"),
        (
            Keywords(),
            {"x": X, "id": Y, "labels": Y},
            r"keys \['id'\] that Keywords.forward does not",
        ),
        (NoForward(), (X, Y), "NoForward has no forward\\(\\).*run=lambda model, batch"),
        (nn.LSTM(3, 3), (X, Y), "the model returned tuple, neither a tensor nor"),
    ],
)
def test_batches_that_no_default_can_run(model, batch, message):
    with pytest.raises(TypeError, match=message):
        run_batch(model, batch)


@pytest.mark.parametrize("key", ["labels", "label"])
def test_mappings(key):
    outputs, targets = run_batch(Keywords(), {"x": X, key: Y})
    assert outputs.shape == (4, 3)
    assert targets is Y


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
def test_inputs_come_in_the_precision_of_the_model(kind, given):
    model = Keywords().to(kind)
    assert run_batch(model, {"x": X.to(given), "labels": Y})[0].dtype == kind
    assert run_batch(model, (X.to(given), Y))[0].dtype == kind


def test_models_of_several_precisions_get_what_the_batch_has():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).bfloat16())
    with pytest.raises(RuntimeError, match="dtype"):
        run_batch(model, (X, Y))


def test_run_says_where_logits_and_targets_are():
    batch = {"image": X, "extra": "text", "class": Y}
    loss = CrossEntropy(run=lambda model, b: (model(b["image"]), b["class"]))
    assert torch.equal(loss(MODEL, batch), CrossEntropy()(MODEL, (X, Y)))
    with pytest.raises(TypeError, match=r"run= must return \(logits, targets\), got Tensor"):
        CrossEntropy(run=lambda model, b: model(b["image"]))(MODEL, batch)
    with pytest.raises(TypeError, match="targets are a list of int, not a tensor"):
        SquaredError(run=lambda model, b: (model(b["image"]), [1, 2]))(MODEL, batch)


MULTI = torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 1, 0]])


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (
            CrossEntropy(),
            MULTI,
            r"row 0 sums to 2 .*BinaryCrossEntropy\(\), for regression Squared",
        ),
        (CrossEntropy(), torch.randn(4, 3), "class probabilities for cross-entropy, but row"),
        (CrossEntropy(), MULTI.long(), "targets must be class labels"),
        (CrossEntropy(), Y.float(), "targets must be class labels, integers"),
        (CrossEntropy(), torch.tensor([[1.5, -0.5, 0.0]] * 4), "smallest value of -0.5"),
        (BinaryCrossEntropy(), 2 * MULTI, "targets from 0 to 1, got 0 to 2; for class labels use"),
        (BinaryCrossEntropy(), Y, "do not fit outputs"),
    ],
)
def test_targets_of_another_task_are_refused_not_guessed(loss, targets, message):
    with pytest.raises(ValueError, match=message):
        loss(MODEL, (X, targets))


def test_one_hot_targets_tell_their_classes():
    loss = CrossEntropy()
    assert torch.equal(loss.classes(nn.functional.one_hot(Y, 3).float()), Y)
    assert loss.classes(torch.full((4, 3), 1 / 3)) is None
    assert loss.classes(MULTI) is None
    soft = nn.functional.one_hot(Y, 3) * 0.9 + 0.1 / 3
    assert loss.classes(soft) is None


@pytest.mark.parametrize("shape", [(4, 7, 3), (4, 3, 2, 2)])
def test_outputs_per_token_are_refused_at_once(shape):
    with pytest.raises(ValueError, match=r"pass losses=TokenCrossEntropy\(\)"):
        CrossEntropy().values(torch.randn(shape), Y)


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, Y), Y),
        ((X, Y, torch.arange(4)), None),
        ({"image": X, "label": Y}, Y),
        ({"image": X, "target": Y[:, None]}, Y),
        ((X, Y.float()), None),
        ((X, torch.arange(4) * 100), None),
        ((X, Y - 1), None),
        ((X, ["a"] * 4), None),
        (X, None),
        ((X, Y[:2]), None),
    ],
)
def test_classes_in_batches_of_own_losses(batch, expected):
    found = classes_in(batch, 4, 3)
    assert found is None if expected is None else torch.equal(found, expected)
