"""Batches and items of a dataset: running a model on them, moving them, comparing them.

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

MOST_FIELDS = 64
"""A longer list in an item is a text or a sequence of numbers, not a list of fields."""
OWN_FORM = "pass losses=CrossEntropy(run=lambda model, batch: (logits, targets))"
"""What errors advise for batches and models of any other form; all losses take ``run=``."""


def model_output(output: Any) -> Tensor:
    """The tensor in a model's output: the output itself, or its ``logits``.

    Raises:
        TypeError: If there is no tensor in it.

    Examples:
        >>> model_output({"loss": None, "logits": torch.ones(2)})
        tensor([1., 1.])
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
    """Outputs and targets for a batch ``(x, y)``, or a mapping with ``labels`` or ``label``.

    Floating-point inputs are converted to the model's own dtype.

    Raises:
        TypeError: If the batch has any other form, or the model does not take it.

    Examples:
        >>> outputs, targets = run_batch(nn.Linear(3, 2), (torch.randn(4, 3), torch.zeros(4)))
        >>> outputs.shape, targets.shape
        (torch.Size([4, 2]), torch.Size([4]))
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
    """The targets themselves.

    Raises:
        TypeError: If they are not a tensor.

    Examples:
        >>> targets_of(["cat", "dog"])
        Traceback (most recent call last):
        TypeError: the batch's targets are a list of str, not a tensor; number the classes in ...
    """
    if isinstance(targets, Tensor):
        return targets
    inside = f" of {type(targets[0]).__name__}" if isinstance(targets, (list, tuple)) else ""
    raise TypeError(
        f"the batch's targets are a {type(targets).__name__}{inside}, not a tensor; number the "
        f"classes in the dataset, or {OWN_FORM}"
    )


def _check_forward(model: nn.Module, keys: list[str] | None) -> None:
    """Check that the model has a ``forward``, and that it takes these names if there are any."""
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
    if "forward" in vars(model) or keys is None:  # one that accelerate wraps takes anything
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
    """Whether the model cannot be called without the targets."""
    parameter = inspect.signature(type(model).forward).parameters.get(key)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _in_precision_of(model: nn.Module, inputs: Any) -> Any:
    """Inputs with floating tensors in the dtype of the parameters, if all have the same."""
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
    """The classes in a batch of unknown form, int64, shape (b,), or None.

    They must be whole numbers, one per sample, each the index of an output; only floors use them.

    Args:
        batch: Any batch.
        size: Number of samples b in it.
        width: Number of outputs C of the layer.

    Examples:
        >>> classes_in((torch.randn(2, 3), torch.tensor([1, 0])), size=2, width=2)
        tensor([1, 0])
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
    """A batch with its tensors moved to the device, in tuples, lists and mappings at any depth.

    Mappings become dicts, except for subclasses of dict.

    Examples:
        >>> to_device({"x": [torch.ones(1)], "name": "a"}, torch.device("cpu"))
        {'x': [tensor([1.])], 'name': 'a'}
    """
    if hasattr(type(batch), "to"):
        moved = batch.to(device)
        return batch if moved is None else moved  # None from a batch that moves itself in place
    if isinstance(batch, dict) and type(batch) is not dict:  # such as one whose keys are attributes
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


def content(item: Any) -> bytes:
    """A hash of the tensors, arrays, images, numbers and texts in an item or a batch.

    Examples:
        >>> content({"x": torch.ones(2)}) == content({"x": torch.ones(2)})
        True
    """
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
    """The label of an item and the shapes in it, which do not depend on how images are decoded.

    Examples:
        >>> outline((torch.ones(3, 8), 1))
        '1 [[3, 8], None]'
    """
    return f"{label_of(item)} {_shapes(item)}"


def _shapes(item: Any) -> Any:
    if isinstance(item, Mapping):
        return {str(key): _shapes(item[key]) for key in item}
    if isinstance(item, (tuple, list)) and len(item) < MOST_FIELDS:
        return [_shapes(part) for part in item]
    shape = getattr(item, "shape", None) or getattr(item, "size", None)
    return list(shape) if isinstance(shape, tuple) else None


def label_of(item: Any) -> int | None:
    """The class of an item ``(x, y)`` or a mapping with ``labels`` or ``label``, or None.

    Examples:
        >>> label_of({"text": "a film", "label": 1})
        1
    """
    if isinstance(item, Mapping):
        label = item.get("labels", item.get("label"))
    else:
        label = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    whole = isinstance(label, (int, np.integer)) or (
        isinstance(label, torch.Tensor) and label.dim() == 0 and not label.is_floating_point()
    )
    return int(label) if whole else None
