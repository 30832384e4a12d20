import random
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from prunesampler.measure.isolation import (
    fingerprint,
    model_device,
    preserved_random_state,
    untouched,
    unwrap,
)


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


def test_buffers_are_made_equal_for_the_time_of_measuring(model):
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


class OwnKind(torch.Tensor):
    pass


class Buffers(nn.Module):
    """Buffers that repeat numbers, hold few of them, equal nothing, or are of a kind of their own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("repeated", torch.arange(3.0).expand(2, 3))
        self.register_buffer("sparse", torch.eye(2).to_sparse())
        self.register_buffer("own kind", torch.ones(4).as_subclass(OwnKind))
        self.register_buffer("nothing", torch.full((2,), float("nan")))
        self.register_buffer("turned", torch.arange(6).reshape(2, 3).T)
        self.register_buffer("conjugated", torch.tensor([1j, 2j]).conj())


def test_buffers_of_every_kind_come_back():
    model = Buffers()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    versions = {name: buffer._version for name, buffer in model.named_buffers()}
    seen = []
    with untouched(model, lambda tensor: seen.append(tensor.numel())):
        model.turned[0, 0] = 7
        model.repeated[0, 1] = 7  # writes into both rows
        model.conjugated.data = torch.zeros(2, dtype=torch.complex64)
    assert seen == [3, 2, 6, 2]
    for name, buffer in model.named_buffers():
        if name == "sparse":
            assert torch.equal(buffer.to_dense(), torch.eye(2))
        elif name != "nothing":
            assert torch.equal(buffer, before[name])
    assert model.nothing._version == versions["nothing"]  # was not written to


def test_compiled_functions_run_as_written(model):
    seen = []
    compiled = torch.compile(lambda network, x: network(x), backend="eager")
    compiled(model.eval(), torch.ones(2, 64))
    with untouched(model, lambda tensor: None):
        hook = model[4].register_forward_hook(lambda *_: seen.append("ran"))
        compiled(model, torch.ones(2, 64))
        hook.remove()
    assert seen == ["ran"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_a_fingerprint_sees_every_bit_and_every_place(dtype):
    layer = nn.Linear(3, 2, dtype=dtype)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    found = {fingerprint(layer)}
    with torch.no_grad():
        for change in (
            lambda: layer.weight[0, 0].mul_(1 + 1e-2),
            lambda: layer.weight.copy_(layer.weight.flip(0)),
            lambda: layer.weight.copy_(layer.weight.flip(1)),
            lambda: layer.bias.zero_(),
            lambda: layer.bias.neg_(),
        ):
            change()
            found.add(fingerprint(layer))
        assert len(found) == 6
        for name, parameter in layer.named_parameters():
            parameter.copy_(before[name])
    assert fingerprint(layer) in found
    layer.register_buffer("one", torch.zeros(1))
    found.add(fingerprint(layer))
    layer.one = torch.zeros(1, dtype=torch.int64)
    assert fingerprint(layer) not in found


def test_a_fingerprint_leaves_the_parameters_where_they_are(model):
    whole = fingerprint(model)
    with patch("prunesampler.measure.isolation.CHUNK", 50):
        assert fingerprint(model) == whole
    moved = []
    with patch.object(torch.Tensor, "cpu", lambda tensor: moved.append(tensor.numel()) or tensor):
        fingerprint(model)
    assert moved == [2 * len(list(model.parameters()))]


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


def test_scripted_parts_and_lazy_ones(few_digits):
    scripted = torch.jit.script(nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16)))
    model = nn.Sequential(scripted, nn.Linear(16, 10)).train()
    with untouched(model, lambda tensor: None):
        assert not model[1].training
        model(few_digits[:4][0])
    assert all(module.training for module in model.modules())
    with pytest.raises(ValueError, match="parameter 0.weight has no shape yet; run a batch"):
        model_device(nn.Sequential(nn.LazyLinear(3)))
