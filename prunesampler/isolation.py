"""Scoring a model without a trace: what it was before, it is afterwards."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
        ValueError: when it has no parameters, lives on several devices, or has no data.
    """
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
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with preserved_random_state():
        try:
            for module, _ in modules:
                module.training = False
            for buffer, _ in buffers:
                broadcast(buffer)
            yield
        finally:
            for module, training in modules:
                module.training = training
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.detach().copy_(before)


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
