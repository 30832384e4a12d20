"""Whatever a dataset holds is shown; what is no image as text, what is nothing known by type and shape."""

# ruff: noqa: RUF001

import base64
import io
from decimal import Decimal

import numpy as np
import pytest
import torch
from PIL import Image

from prunesampler.page.pictures import SIDE, Picture, kind, picture, pixels


def image_of(shown):
    assert shown.image.startswith("data:image/"), shown
    return Image.open(io.BytesIO(base64.b64decode(shown.image.partition(",")[2])))


def pixels_of(item):
    return np.asarray(image_of(picture(item)))


GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
COLOURS = np.stack([GREY, GREY.T, 255 - GREY], 2)


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (GREY[None], GREY),
        (COLOURS, COLOURS),
        (torch.from_numpy(COLOURS), COLOURS),
        (torch.from_numpy(COLOURS).permute(2, 0, 1), COLOURS),
        (torch.from_numpy(COLOURS).permute(2, 0, 1) / 255, COLOURS),
        ((torch.from_numpy(COLOURS).permute(2, 0, 1) / 255).double().requires_grad_(), COLOURS),
        (torch.from_numpy(COLOURS).long(), COLOURS),
        (Image.fromarray(GREY), GREY),
        (Image.fromarray(COLOURS), COLOURS),
        (GREY > 100, np.where(GREY > 100, 255, 0)),
        ((Image.fromarray(GREY), 3), GREY),
        ({"label": 3, "image": COLOURS}, COLOURS),
        ([{"pixel_values": torch.from_numpy(GREY)}, 1], GREY),
        (GREY[::-1, ::-1], GREY[::-1, ::-1]),
    ],
)
def test_images_are_shown_as_they_are(item, expected):
    assert np.array_equal(pixels_of(item), expected)


def test_normalised_images_are_stretched():
    normalised = (torch.from_numpy(COLOURS).permute(2, 0, 1) / 255 - 0.45) / 0.22
    low, high = COLOURS.min().item(), COLOURS.max().item()
    expected = (COLOURS.astype(float) - low) / (high - low) * 255
    assert np.abs(pixels_of(normalised) - expected).max() <= 1
    assert np.abs(pixels_of(normalised.half()) - expected).max() <= 2
    assert np.abs(pixels_of(normalised.bfloat16()) - expected).max() <= 4


def test_what_is_not_finite_is_black_and_told():
    broken = torch.rand(3, 8, 8)
    broken[0, 0, 0], broken[1, 1, 1] = float("nan"), float("inf")
    shown = picture(broken)
    assert shown.remark == "2 of 192 numbers are not finite"
    assert pixels_of(broken)[0, 0, 0] == 0
    assert picture(torch.full((3, 8, 8), float("nan"))) == Picture(
        "ndarray of shape 8 × 8 × 3, float32: no number is finite"
    )


def test_extreme_numbers_do_not_overflow():
    array = np.array([[-1.7e308, 1.7e308], [0.0, np.nan]])
    assert pixels(array)[0].tolist() == [[0, 255], [128, 0]]
    assert pixels(np.full((4, 4), 7.0))[0].max() == 0
    assert pixels(np.array([[0, 2**62]]))[0].tolist() == [[0, 255]]


def test_large_images_become_small_and_small_ones_stay_pixels():
    large = picture(torch.rand(3, 2000, 1000))
    assert image_of(large).size == (SIDE // 2, SIDE)
    assert large.text == "1000 × 2000 pixels"
    assert large.image.startswith("data:image/jpeg")
    assert not large.tiny
    assert len(large.image) < 40_000
    small = picture(torch.rand(1, 8, 8))
    assert small.tiny
    assert small.text == "8 × 8 pixels"


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "I;16"])  # fmt: skip
def test_images_of_every_mode_are_shown_and_not_changed(mode):
    image = Image.new(mode, (300, 200))
    image.info["icc_profile"] = b"x" * 100_000
    shown = picture(image)
    assert image_of(shown).size == (192, 128)
    assert len(shown.image) < 10_000
    assert image.size == (300, 200)
    assert "icc_profile" in image.info


def test_alpha_is_kept():
    image = Image.new("RGBA", (100, 100), (255, 0, 0, 0))
    assert image_of(picture(image)).mode == "RGBA"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        ("a text", "a text"),
        (("a text", 1), "a text"),
        ({"text": "a text", "label": 1}, "a text"),
        ({"premise": "one", "hypothesis": "two", "label": 1}, "premise: one · hypothesis: two · label: 1"),
        ({"input_ids": [5] * 100}, "input_ids: 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, … (100 numbers)"),
        (torch.tensor([0.5, 1.25]), "0.5, 1.25"),
        ((np.arange(100.0), 1), "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (100 numbers)"),
        ([1.0, 2.5], "1, 2.5"),
        (torch.tensor(3.5), "3.5"),
        (7, "7"),
        (Decimal("1.5"), "1.5"),
        (None, "NoneType"),
        (b"abc", "bytes of length 3"),
        ((), "tuple of length 0"),
        ({}, ""),
        (torch.zeros(2, 3, 4, 5), "Tensor of shape 2 × 3 × 4 × 5, torch.float32"),
        (torch.zeros(7, 8, 9), "Tensor of shape 7 × 8 × 9, torch.float32"),
        (torch.zeros(3, 0, 0), "Tensor of shape 3 × 0 × 0, torch.float32"),
        (torch.zeros(1000, 2), "Tensor of shape 1000 × 2, torch.float32"),
        (torch.zeros(3, 8, 8, dtype=torch.complex64), "Tensor of shape 3 × 8 × 8, torch.complex64"),
        (np.array([["a"]]), "ndarray of shape 1 × 1, <U1"),
        (torch.zeros(3, 8, 8, device="meta"), "Tensor of shape 3 × 8 × 8, torch.float32"),
        (torch.eye(8).to_sparse(), "Tensor of shape 8 × 8, torch.float32"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_shown_as_text(item, text):
    shown = picture(item)
    assert shown.text == text
    assert not shown.image


class Hostile:
    def __len__(self):
        raise OSError("gone")


class BrokenImage(Image.Image):
    def convert(self, *arguments, **options):
        raise OSError("image file is truncated")


def test_nothing_fails():
    itself = []
    itself.append(itself)
    broken = BrokenImage()
    broken._size, broken._mode = (10, 10), "RGB"
    assert picture(Hostile()).text == kind(Hostile()) == "Hostile"
    assert "RecursionError" in picture(itself).remark
    assert picture(broken).remark == "cannot be drawn: OSError('image file is truncated')"
