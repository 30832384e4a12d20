"""Scoring a model without a trace: what it was before, it is afterwards."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def model_device(model: nn.Module) -> torch.device:
    """The one device that a model lives on.

    Raises:
        TypeError: when it is no module.
        ValueError: when it has no parameters, lives on several devices, or has no data.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    devices = {t.device for t in itertools.chain(model.parameters(), model.buffers())}
    if not devices:
        raise ValueError(f"{type(model).__name__} has no parameters, so nothing can be influenced")
    if len(devices) > 1:
        names = ", ".join(sorted(map(str, devices)))
        raise ValueError(
            f"the model lies on several devices ({names}); move it to one with model.to(device)"
        )
    device = devices.pop()
    if device.type == "meta":
        raise ValueError(
            "the model's parameters are on the meta device and hold no numbers; load its weights "
            "and move it with model.to_empty(device=...) first"
        )
    return device


def fingerprint(model: nn.Module) -> bytes:
    """A hash of all parameters, and of the names and shapes of the buffers."""
    digest = hashlib.blake2b()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    digest.update(repr([(name, tuple(b.shape)) for name, b in model.named_buffers()]).encode())
    return digest.digest()


@contextmanager
def untouched(model: nn.Module, broadcast: Callable[[Tensor], None]) -> Iterator[None]:
    """Evaluation mode inside; training flags, buffers and random numbers as before outside.

    Flags are set one by one, not by ``model.eval()``, since a module may do more than that there.

    Args:
        model: without wrappers.
        broadcast: makes a tensor equal on all ranks. Buffers (BatchNorm's statistics) differ between
            ranks until the next forward pass, and would give every rank other scores.
    """
    modules = [(module, module.training) for module in model.modules()]
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with preserved_random_state(), eager(model), torch.inference_mode(False):
        try:
            for module, _ in modules:
                module.training = False
            for buffer in model.buffers():
                broadcast(buffer)
            yield
        finally:
            for module, training in modules:
                module.training = training
            for module, names in registered:  # the forward pass may have put others there
                module._buffers.clear()
                module._buffers.update(names)
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.detach().copy_(before)


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run compiled modules uncompiled inside: compiled code does not see hooks added later."""
    compiled = any(
        hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
        for module in model.modules()
    )
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Global random states of Python, NumPy, torch and CUDA outside are as before."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    cpu = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
