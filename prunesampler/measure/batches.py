"""What a batch or an item of a dataset is: running a model on it, moving it, comparing it.

Nothing here reads a dataset; see `prunesampler.measure.reading`.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FEW = 64
"""Longer lists in an item are texts, not parts."""
OWN_FORM = "pass losses=CrossEntropy(run=lambda model, batch: (logits, targets))"
"""The way out for batches and models of any other form; the other losses have the same ``run=``."""


def model_output(output: Any) -> Tensor:
    """The tensor of a model's output: itself, or its ``logits``.

    Raises:
        TypeError: when it is neither.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else output
    logits = getattr(logits, "logits", logits)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"the model returned {type(output).__name__}, neither a tensor nor an object with "
            f"`.logits`; {OWN_FORM}, which says where the logits are"
        )
    return logits


def run_batch(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    """Run the model on ``(x, y)``, or on a mapping with ``labels`` or ``label``; outputs and targets.

    Inputs of another floating type than the model's own are converted to it.

    Raises:
        TypeError: for a batch of any other form, or a model that does not take it.
    """
    if isinstance(batch, Mapping) and ("labels" in batch or "label" in batch):
        key = "labels" if "labels" in batch else "label"
        needed = _requires(model, key)
        inputs = {name: value for name, value in batch.items() if name != key or needed}
        _check_forward(model, list(inputs))
        return model_output(model(**_in_precision_of(model, inputs))), targets_of(batch[key])
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        _check_forward(model, None)
        targets = targets_of(batch[1])
        return model_output(model(_in_precision_of(model, batch[0]))), targets
    form = f" of length {len(batch)}" if isinstance(batch, (tuple, list)) else ""
    keys = f" with keys {sorted(map(str, batch))}" if isinstance(batch, Mapping) else ""
    raise TypeError(
        f"the default loss takes a batch (x, y) or a mapping with 'labels', got "
        f"{type(batch).__name__}{form}{keys}; {OWN_FORM}"
    )


def targets_of(targets: Any) -> Tensor:
    """The targets, if they are a tensor."""
    if isinstance(targets, Tensor):
        return targets
    inside = f" of {type(targets[0]).__name__}" if isinstance(targets, (list, tuple)) else ""
    raise TypeError(
        f"the batch's targets are a {type(targets).__name__}{inside}, not a tensor; number the "
        f"classes in the dataset, or {OWN_FORM}"
    )


def _check_forward(model: nn.Module, keys: list[str] | None) -> None:
    """Check that the model has a ``forward`` that takes these names, or one input."""
    name, given = type(model).__name__, type(model).forward
    # Lightning's base class has a forward() of its own, which only raises.
    none = (
        given is nn.Module.forward
        or getattr(given, "__qualname__", "") == "LightningModule.forward"
    )
    if none and "forward" not in vars(model):
        raise TypeError(
            f"{name} has no forward(), so a batch cannot be run through it; {OWN_FORM}, which runs "
            "it as your training step does"
        )
    if "forward" in vars(model) or keys is None:  # wrapped, as by accelerate: it takes anything
        return
    parameters = inspect.signature(type(model).forward).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    extra = [key for key in keys if key not in parameters]
    if extra and not anything:
        raise TypeError(
            f"the batch has keys {extra} that {name}.forward does not take; {OWN_FORM}, or leave "
            "them out in the dataset or collate_fn="
        )


def _requires(model: nn.Module, key: str) -> bool:
    """Whether the model cannot be called without the targets, whatever it does with them."""
    parameter = inspect.signature(type(model).forward).parameters.get(key)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _in_precision_of(model: nn.Module, inputs: Any) -> Any:
    """Inputs with floating tensors in the one floating type that all parameters have, if so."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    if len(types) != 1:
        return inputs
    (wanted,) = types
    if isinstance(inputs, Tensor):
        convert = inputs.is_floating_point() and inputs.dtype != wanted
        return inputs.to(wanted) if convert else inputs
    if isinstance(inputs, dict):
        return {name: _in_precision_of(model, value) for name, value in inputs.items()}
    return inputs


def classes_in(batch: Any, size: int, width: int) -> Tensor | None:
    """The classes in a batch whose form is unknown, int64, shape (b,), or None.

    Only for floors per class: whole numbers, one per sample, each the number of an output.
    """
    if isinstance(batch, Mapping):
        found = next(
            (batch[k] for k in ("labels", "label", "targets", "target") if k in batch), None
        )
    else:
        found = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
    if not isinstance(found, Tensor) or found.is_floating_point() or found.is_complex():
        return None
    if found.numel() != size or not len(found):
        return None
    classes = found.detach().reshape(size).long()
    inside = (classes >= 0) & (classes < max(2, width))
    return classes if bool(inside.all()) else None


def to_device(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on the device, in tuples, lists and mappings (as dicts) at any depth."""
    if hasattr(type(batch), "to"):
        moved = batch.to(device)
        return batch if moved is None else moved  # it moved itself
    if isinstance(batch, dict) and type(batch) is not dict:  # one whose keys are attributes, say
        same = copy.copy(batch)
        same.update({key: to_device(value, device) for key, value in batch.items()})
        return same
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def same_item(first: Any, second: Any) -> bool:
    """Whether two readings of a dataset's item, or two batches, hold the same."""
    return content(first) == content(second)


def content(item: Any) -> bytes:
    """A hash of what an item or a batch holds: tensors, arrays, images, numbers and texts."""
    digest = hashlib.blake2b(digest_size=16)
    _add(digest, item)
    return digest.digest()


def _add(digest: hashlib.blake2b, item: Any) -> None:
    digest.update(type(item).__name__.encode())
    if isinstance(item, Mapping):
        for key in item:
            digest.update(repr(key).encode())
            _add(digest, item[key])
    elif isinstance(item, (tuple, list)):
        for part in item:
            _add(digest, part)
    elif isinstance(item, Tensor) and item.layout is torch.strided:
        digest.update(f"{item.dtype} {tuple(item.shape)}".encode())
        flat = item.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(item, (bool, int, float, complex, str, bytes)):
        digest.update(repr(item).encode())
    elif isinstance(item, np.ndarray) and item.dtype.hasobject:
        _add(digest, [list(item.shape), item.ravel().tolist()])
    elif callable(getattr(item, "tobytes", None)):  # NumPy's arrays and numbers, Pillow's images
        digest.update(f"{getattr(item, 'dtype', '')} {getattr(item, 'shape', '')}".encode())
        digest.update(item.tobytes())


def outline(item: Any) -> str:
    """The label of an item and the shapes in it: the same on machines that decode images otherwise."""
    return f"{label_of(item)} {_shapes(item)}"


def _shapes(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {str(key): _shapes(item[key]) for key in item}
    if isinstance(item, (tuple, list)) and len(item) < FEW:
        return [_shapes(part) for part in item]
    shape = getattr(item, "shape", None) or getattr(item, "size", None)
    return list(shape) if isinstance(shape, tuple) else None


def label_of(item: Any) -> int | None:
    """The class of a dataset's item ``(x, y)`` or mapping with ``labels`` or ``label``, if it is one."""
    if isinstance(item, Mapping):
        label = item.get("labels", item.get("label"))
    else:
        label = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    whole = isinstance(label, (int, np.integer)) or (
        isinstance(label, torch.Tensor) and label.dim() == 0 and not label.is_floating_point()
    )
    return int(label) if whole else None
