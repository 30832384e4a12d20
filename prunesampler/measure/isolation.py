"""Measuring with a model that is left as it was."""

from __future__ import annotations

import hashlib
import itertools
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

CHUNK = 2**20  # numbers of a parameter to widen to 64 bits at a time
WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by bytes per number; int64 for eight


def unwrap(model: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile.

    Examples:
        >>> unwrap(DataParallel(nn.Linear(2, 1)))
        Linear(in_features=2, out_features=1, bias=True)
    """
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def model_device(model: nn.Module) -> torch.device:
    """The one device that all parameters and buffers of a model are on.

    Raises:
        TypeError: If it is not a module.
        ValueError: If it has no parameters, is sharded, is on several devices, or holds no data.

    Examples:
        >>> model_device(nn.Linear(2, 1))
        device(type='cpu')
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    _check_whole(model)
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"the model's parameter {lazy[0]} has no shape yet; run a batch through the model first"
        )
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


def _check_whole(model: nn.Module) -> None:
    """Check that this process holds the whole model, and not a shard of FSDP or DTensor.

    If these were never imported, nothing is sharded.
    """
    fsdp, dtensor = (sys.modules.get(f"torch.distributed.{name}") for name in ("fsdp", "tensor"))
    wrapper: Any = getattr(fsdp, "FullyShardedDataParallel", ())
    shard: Any = getattr(dtensor, "DTensor", ())
    found = [(name, part) for name, part in model.named_modules() if isinstance(part, wrapper)]
    tensors = itertools.chain(model.named_parameters(), model.named_buffers())
    found += [(name, tensor) for name, tensor in tensors if isinstance(tensor, shard)]
    if found:
        name, part = found[0]
        raise ValueError(
            f"sharded models (FSDP, DTensor) are not supported, and {name or 'the model'} is a "
            f"{type(part).__name__}; measure an unsharded copy: a plain model that loads the full state "
            "dict on every process"
        )


def fingerprint(model: nn.Module) -> bytes:
    """A hash of all parameters, and of the shapes and dtypes of the buffers.

    The parameters are summed where they are, as integers, so that no order of summation matters,
    and only the sums leave the device.

    Examples:
        >>> model = nn.Linear(2, 1)
        >>> before = fingerprint(model)
        >>> with torch.no_grad():
        ...     _ = model.bias.add_(1e-6)
        >>> fingerprint(model) == before
        False
    """
    digest, sums = hashlib.blake2b(), []
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        sums.append(_checksums(parameter))
    for name, buffer in model.named_buffers():
        digest.update(f"{name} {tuple(buffer.shape)} {buffer.dtype} {buffer.layout}".encode())
    if sums:
        digest.update(torch.stack(sums).cpu().numpy().tobytes())
    return digest.digest()


def _checksums(tensor: Tensor) -> Tensor:
    """Sum of a tensor's bit patterns, and their sum weighted by position, modulo 2^64, shape (2,)."""
    bits = _bits(tensor)
    sums = bits.new_zeros(2, dtype=torch.int64)
    for start in range(0, len(bits), CHUNK):
        part = bits[start : start + CHUNK].to(torch.int64)
        places = torch.arange(start + 1, start + 1 + len(part), device=part.device)
        sums += torch.stack([part.sum(), (part * places).sum()])
    return sums


def _bits(tensor: Tensor) -> Tensor:
    """The bits of a tensor as integers of the same size, flat, on its device."""
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.view(-1).view(WHOLE.get(tensor.element_size(), torch.int64))


def _numbers(buffer: Tensor) -> Tensor | None:
    """A view of a buffer that holds every number once, or None if there is no such view.

    ``expand`` repeats numbers, and repeated numbers cannot be written to. Sparse buffers and special
    kinds of tensors, such as quantised ones, cannot be compared bit by bit.
    """
    if type(buffer) is not Tensor or buffer.layout is not torch.strided or buffer.is_quantized:
        return None
    return buffer.detach()[tuple(slice(None if step else 1) for step in buffer.stride())]


@contextmanager
def untouched(model: nn.Module, broadcast: Callable[[Tensor], None]) -> Iterator[None]:
    """Put the model in evaluation mode; restore flags, buffers and random states at the end.

    Training flags are set one by one, not by ``model.eval()``, which a module may override.

    Args:
        model: The model, without wrappers.
        broadcast: Makes a tensor equal on all ranks. Buffers (BatchNorm's statistics) differ between
            ranks until the next forward pass, and every rank would measure with its own.

    Examples:
        >>> model = nn.Dropout().train()
        >>> with untouched(model, broadcast=lambda tensor: None):
        ...     inside = model.training
        >>> inside, model.training
        (False, True)
    """
    modules = [(module, module.training) for module in model.modules()]
    registered = [(module, dict(module._buffers)) for module in model.modules()]
    views = [(buffer, _numbers(buffer)) for buffer in model.buffers()]
    before = [(buffer, view.clone()) for buffer, view in views if view is not None]
    with preserved_random_state(), eager(), torch.inference_mode(False):
        try:
            for module, _ in modules:
                module.training = False
            for _, view in views:
                if view is not None:
                    broadcast(view)
            yield
        finally:
            for module, training in modules:
                module.training = training
            for module, names in registered:  # the forward pass may have replaced some
                there = dict(module._buffers)
                same = all(there.get(name) is buffer for name, buffer in names.items())
                if not same or len(there) != len(names):
                    module._buffers.clear()
                    module._buffers.update(names)
            for buffer, numbers in before:
                now = _numbers(buffer)  # again: the forward pass may have given it other memory
                if now is not None and not torch.equal(_bits(now), _bits(numbers)):
                    now.copy_(numbers)


@contextmanager
def eager() -> Iterator[None]:
    """Run compiled code uncompiled inside, since it ignores hooks that are added later.

    The model, a module in it, or a loss function that calls it may be compiled, so this applies to
    all compiled code. There is none unless PyTorch's compiler was imported, which takes seconds.

    Examples:
        >>> with eager():
        ...     nn.Linear(2, 1)(torch.ones(3, 2)).shape
        torch.Size([3, 1])
    """
    compiled = "torch._dynamo" in sys.modules
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        yield


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Give the global generators of Python, NumPy, torch and CUDA their states back at the end.

    Examples:
        >>> with preserved_random_state():
        ...     inside = torch.rand(1)
        >>> torch.equal(torch.rand(1), inside)
        True
    """
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
