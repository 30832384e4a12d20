import random

import numpy as np
import pytest
import torch
from torch import nn

from prunesampler.isolation import model_device, preserved_random_state, untouched, unwrap


def test_flags_buffers_and_random_states_come_back(model):
    model.train()
    model[1].eval()  # a frozen layer stays frozen
    flags = [m.training for m in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = (torch.rand(1), np.random.rand(), random.random())
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    with pytest.raises(RuntimeError, match="on purpose"), untouched(model, lambda tensor: None):
        assert not any(m.training for m in model.modules())
        model.train()(torch.randn(4, 64))  # changes batch norm and draws
        np.random.rand()
        random.random()
        raise RuntimeError("on purpose")
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_buffers_are_made_equal_for_the_time_of_scoring(model):
    before = model[1].running_mean.clone()
    with untouched(model, lambda tensor: tensor.fill_(2)):
        assert (model[1].running_mean == 2).all()
    assert torch.equal(model[1].running_mean, before)


class Replaces(nn.Module):
    """Puts a new tensor in place of its buffer with every pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(1))
        self.register_buffer("cache", None)

    def forward(self, x):
        self.count = self.count + 1
        self.cache = torch.ones(3)
        return x


def test_replaced_buffers_come_back():
    model = Replaces()
    before = model.count
    with untouched(model, lambda tensor: None):
        model(1)
    assert model.count is before
    assert model.cache is None
    assert float(before) == 0


def test_random_states_survive_an_error():
    state = torch.get_rng_state()
    with pytest.raises(KeyError), preserved_random_state():
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_wrappers_are_seen_through(model):
    assert unwrap(nn.DataParallel(model)) is model
    assert unwrap(torch.compile(nn.DataParallel(model))) is model
    assert unwrap(model) is model


def test_device_of_a_model(model):
    assert model_device(model) == torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.ReLU(), "ReLU has no parameters"),
        (nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, device="meta")), r"\(cpu, meta\)"),
        (nn.Linear(1, 1, device="meta"), "meta device and hold no numbers"),
    ],
)
def test_models_in_the_wrong_place(model, message):
    with pytest.raises(ValueError, match=message):
        model_device(model)
