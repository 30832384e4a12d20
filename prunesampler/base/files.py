"""Files without pickle: tensors and JSON in one safetensors file, safe to read whoever wrote it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

STATE = ("prunesampler.state", 1)


def pack(kind: tuple[str, int], header: Mapping[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """The content of a file of this kind.

    Args:
        kind: Name and version of the format.
        header: JSON values.
        tensors: Tensors by name.

    Examples:
        >>> import torch
        >>> header, tensors = unpack(("sums", 1), pack(("sums", 1), {"n": 3}, {"x": torch.ones(2)}))
        >>> header["n"], tensors["x"]
        (3, tensor([1., 1.]))
    """
    header = {"format": kind[0], "version": kind[1], **header}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return save_tensors(whole, {"header": json.dumps(header)})


def unpack(kind: tuple[str, int], data: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors of a file that `pack` wrote.

    Raises:
        ValueError: If it is not a whole file of this kind and version.

    Examples:
        >>> unpack(("sums", 2), pack(("sums", 1), {}, {}))
        Traceback (most recent call last):
        ValueError: this is 'sums' version 1; this release reads 'sums' version 2
    """
    try:
        header = _header(data)
    except ValueError as error:
        raise ValueError(f"not a file of {kind[0]}") from error
    found = (header["format"], header["version"])
    if found != kind:
        raise ValueError(
            f"this is {found[0]!r} version {found[1]!r}; this release reads {kind[0]!r} version "
            f"{kind[1]}"
        )
    try:
        return header, load_tensors(data)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"not a whole file of {kind[0]}: {error}") from error


def kind_of(data: bytes) -> tuple[str, int]:
    """Name and version of the format of a file that `pack` wrote.

    Args:
        data: The file, or as much of its beginning as the header takes.

    Raises:
        ValueError: If it has no such header.

    Examples:
        >>> kind_of(pack(("sums", 1), {}, {}))
        ('sums', 1)
    """
    header = _header(data)
    name, version = header["format"], header["version"]
    if not isinstance(name, str) or type(version) is not int:
        raise ValueError("not a file of prunesampler")
    return name, version


def _header(data: bytes) -> dict[str, Any]:
    """The JSON of a file, with at least a format and a version.

    Raises:
        ValueError: If there is none.
    """
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["header"])
        return {**header, "format": header["format"], "version": header["version"]}
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise ValueError("not a file of prunesampler") from error


def pack_state(state: Mapping[str, Any]) -> bytes:
    """A file for nested dicts of tensors and JSON values, such as ``PruningCallback.state_dict``.

    Examples:
        >>> import torch
        >>> unpack_state(pack_state({"sampler": {"kept": torch.tensor([3]), "epoch": 1}}))
        {'sampler': {'kept': tensor([3]), 'epoch': 1}}
    """
    tensors: dict[str, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            tensors[path] = value
            return {"tensor": path}
        if isinstance(value, Mapping):
            return {"dict": {key: plain(part, f"{path}/{key}") for key, part in value.items()}}
        return value

    return pack(STATE, {"state": plain(state, "")}, tensors)


def unpack_state(data: bytes) -> dict[str, Any]:
    """The state in a file that `pack_state` wrote.

    Raises:
        ValueError: If it is not a whole file of this kind.

    Examples:
        >>> unpack_state(b"something else")
        Traceback (most recent call last):
        ValueError: not a file of prunesampler.state
    """
    header, tensors = unpack(STATE, data)

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: whole(part) for key, part in value["dict"].items()}

    try:
        return dict(whole(header["state"]))
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a whole file of {STATE[0]}: {error!r}") from error


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, whole.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder, "state"), b"whole")
        ...     Path(folder, "state").read_bytes()
        b'whole'
    """
    name = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with open(name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
