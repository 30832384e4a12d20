"""A sample as a page shows it: an image where it is one, else text. What cannot be drawn is told by type and shape."""

from __future__ import annotations

import base64
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunesampler.page.texts import count, short

SIDE = 192
"""Pixels of the longer side of an image at most."""
TINY = 64
"""Up to this side an image is kept pixel by pixel; larger ones are compressed as photographs are."""
LETTERS, NUMBERS, PARTS = 220, 12, 16
"""Letters of a text, numbers of a row, and parts of a mapping, that are shown."""
TIMES = " \N{MULTIPLICATION SIGN} "
CHANNELS = (1, 3, 4)
SLIM = 8
"""Ratio of the sides above which two dimensions are rather a table of numbers than an image."""


@dataclass(frozen=True)
class Picture:
    """What is shown of a sample.

    Args:
        text: The sample as text, or of an image its size.
        image: The image as a data URI; empty where there is none.
        tiny: Whether the image has few pixels, to be shown as squares.
        remark: What is unusual about it, or nothing.

    Examples:
        >>> Picture("a text").image
        ''
    """

    text: str
    image: str = ""
    tiny: bool = False
    remark: str = ""


def picture(item: Any) -> Picture:
    """Show an item of a dataset; whatever it is, no error comes of it.

    Args:
        item: A sample: an image as tensor, array (channels first or last) or of Pillow, a text, numbers, or a
            mapping of such. Of a tuple or a list the first part is shown, for the others are labels.

    Examples:
        >>> picture(("a text", 3)).text, picture(object()).text
        ('a text', 'object')
        >>> picture((torch.rand(3, 8, 8), 3)).image[:22]
        'data:image/png;base64,'
    """
    try:
        return _picture(_content(item))
    except Exception as error:  # data that claim to be what they are not may raise anything
        return Picture(kind(item), remark=f"cannot be drawn: {short(repr(error), 120)}")


def kind(value: Any) -> str:
    """Type and shape of a value, which is what is told of one that cannot be drawn.

    Examples:
        >>> kind(torch.zeros(2, 3, 4, 5)), kind([1, 2])
        ('Tensor of shape 2 × 3 × 4 × 5, torch.float32', 'list of length 2')
    """
    name = type(value).__name__
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{name} of shape {TIMES.join(map(str, value.shape)) or '()'}, {value.dtype}"
    try:
        return f"{name} of length {len(value)}"
    except Exception:
        return name


def _content(item: Any) -> Any:
    """The part of an item to show: of a tuple the first, of a mapping the first image, else the first text."""
    if isinstance(item, (tuple, list)) and len(item) and not isinstance(item[0], Number):
        return _content(item[0])
    if isinstance(item, Mapping):
        values = list(item.values())
        images = [value for value in values if _is_image(value)]
        texts = [value for value in values if isinstance(value, str)]
        if images or len(texts) == 1:
            return (images or texts)[0]
    return item


def _is_image(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return _planes(value) is not None
    pillow = sys.modules.get("PIL.Image")  # without it, nothing is an image of Pillow
    return pillow is not None and isinstance(value, pillow.Image)


def _picture(value: Any) -> Picture:
    if isinstance(value, (Tensor, np.ndarray)):
        axes = _planes(value)
        if axes is not None:
            height, width = (value.shape[axis] for axis in axes[:2])
            return _drawn(_array(value, axes), _size(width, height))
    elif _is_image(value):
        return _photograph(value)
    if isinstance(value, Mapping):
        parts = [(short(str(name), 40), short(_text(part), 80)) for name, part in value.items()]
        return Picture(" · ".join(f"{name}: {part}" for name, part in parts[:PARTS]))
    return Picture(_text(value))


def _text(value: Any) -> str:
    """A text or a number itself, of numbers in a row the first, else type and shape."""
    if isinstance(value, str):
        return value
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, (tuple, list)) and len(value) and isinstance(value[0], Number):
        value = np.asarray(value)
    if not isinstance(value, (Tensor, np.ndarray)) or len(value.shape) > 1 or not _numeric(value):
        return kind(value)
    row = np.atleast_1d(_array(value, ()))
    shown = ", ".join(f"{number:.4g}" for number in row[:NUMBERS].tolist())
    return f"{shown}, … ({count(len(row))} numbers)" if len(row) > NUMBERS else shown


def _numeric(value: Tensor | NDArray[Any]) -> bool:
    if isinstance(value, Tensor):
        return not value.dtype.is_complex
    return value.dtype.kind in "biuf"


def _planes(value: Tensor | NDArray[Any]) -> tuple[int, ...] | None:
    """Axes of height, width and, if there are any, channels; None if this is no image."""
    shape = tuple(value.shape)
    if not _numeric(value):
        return None
    if len(shape) == 2:
        axes: tuple[int, ...] = (0, 1)
    elif len(shape) != 3:
        return None
    # In torch channels come first where both ends may be channels, in NumPy last.
    elif shape[0] in CHANNELS and (isinstance(value, Tensor) or shape[2] not in CHANNELS):
        axes = (1, 2, 0)
    elif shape[2] in CHANNELS:
        axes = (0, 1, 2)
    else:
        return None
    small, large = sorted((shape[axes[0]], shape[axes[1]]))
    drawn = small >= 1 and (
        large <= SLIM * small if len(shape) == 3 else 4 <= small >= large / SLIM
    )
    return axes if drawn else None


def _array(value: Tensor | NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """The numbers on the CPU, with these axes first, and of large images not every pixel."""
    if isinstance(value, Tensor):
        value = value.detach()
    if axes:
        step = max(1, max(value.shape[axis] for axis in axes[:2]) // (2 * SIDE))
        for axis in axes[:2]:
            some: Any = slice(None, None, step)
            value = value[(slice(None),) * axis + (some,)]
    if isinstance(value, Tensor):
        value = value.cpu()
        value = (value if value.dtype in PLAIN else value.float()).numpy()
    return value.transpose(axes) if axes else value


PLAIN = (
    torch.uint8,
    torch.bool,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float32,
    torch.float64,
)
"""Kinds of numbers that NumPy has, too."""


def _drawn(array: NDArray[Any], size: str) -> Picture:
    """An image of shape (H, W) or (H, W, channels); a fourth channel is left out."""
    from PIL import Image

    image, broken = pixels(array)
    if broken == array.size:
        return Picture(f"{kind(array)}: no number is finite")
    if image.ndim == 3:
        image = image[:, :, 0] if image.shape[2] == 1 else image[:, :, :3]
    remark = f"{count(broken)} of {count(array.size)} numbers are not finite" if broken else ""
    return _encoded(Image.fromarray(np.ascontiguousarray(image)), size, remark)


def pixels(array: NDArray[Any]) -> tuple[NDArray[np.uint8], int]:
    """Numbers as brightness from 0 to 255, and how many are not finite, which become black.

    Bytes stay as they are, and numbers from 0 to 1 become 0 to 255. All others, as normalised images have them,
    are stretched from the least to the largest.

    Examples:
        >>> pixels(np.array([[0.0, 1.0]]))[0].tolist(), pixels(np.array([[-2.0, np.nan, 2.0]]))[0].tolist()
        ([[0, 255]], [[0, 0, 255]])
    """
    if array.dtype == np.uint8:
        return array, 0
    whole, held = array.dtype.kind in "iu", array.astype(np.float64)
    finite = np.isfinite(held)
    broken = int(finite.size - finite.sum())
    if broken == finite.size:
        return np.zeros(array.shape, np.uint8), broken
    low, high = float(held[finite].min()), float(held[finite].max())
    if low < 0 or high > (255 if whole else 1):
        span = high / 2 - low / 2  # of halves, for the whole may overflow
        held = 255 * ((np.where(finite, held, low) / 2 - low / 2) / (span or 1.0))
    elif not whole:
        held = 255 * held
    return np.where(finite, held, 0).round().astype(np.uint8), broken


def _photograph(image: Any) -> Picture:
    """An image of Pillow, which is not changed."""
    size = _size(image.width, image.height)
    if image.mode[0] in "IF":  # more than 8 bits
        return _drawn(np.asarray(image), size)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        return _encoded(image.convert("RGBA"), size)
    return _encoded(image.convert("L" if image.mode in ("1", "L") else "RGB"), size)


def _size(width: int, height: int) -> str:
    return f"{width}{TIMES}{height} pixels"


def _encoded(image: Any, size: str, remark: str = "") -> Picture:
    """An image of ours as a data URI."""
    tiny = max(image.size) <= TINY
    image.thumbnail((SIDE, SIDE))
    image.info = {}  # profiles of colour may be larger than the image
    file, name = io.BytesIO(), "png" if tiny or image.mode == "RGBA" else "jpeg"
    image.save(file, name, **({"quality": 82} if name == "jpeg" else {"optimize": True}))
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(size, f"data:image/{name};base64,{data}", tiny, remark)
