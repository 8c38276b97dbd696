"""Decoding against Pillow, and refusals."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import encode, gradient
from PIL import Image

from moe_dist.data.decode import decode, decode_resized, image_size, resize


def pillow(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("kind", ["PNG", "PPM"])
def test_lossless_images_keep_their_pixels(kind: str):
    pixels = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    assert np.array_equal(decode(encode(pixels, kind)), pixels)


def test_grey_becomes_three_equal_channels():
    grey = gradient(6, 9)[..., 0]
    assert np.array_equal(decode(encode(grey, "PNG")), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_is_what_pillow_makes_of_it(mode: str):
    encoded = io.BytesIO()
    Image.fromarray(gradient(40, 56)).convert(mode).save(encoded, "JPEG", quality=90)
    difference = decode(encoded.getvalue()).astype(int) - pillow(encoded.getvalue())
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_a_truncated_image_is_refused(kind: str):
    data = encode(np.random.default_rng(1).integers(0, 256, (40, 40, 3), np.uint8), kind)
    for kept in (len(data) - 100, len(data) // 2, 20):
        with pytest.raises(ValueError):
            decode(data[:kept])
        with pytest.raises(ValueError):
            decode_resized(data[:kept], 16)


def test_other_formats_are_refused_whatever_they_are_called():
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n"
    for data in (postscript, encode(gradient(8, 8), "GIF"), b""):
        with pytest.raises(ValueError, match="not a JPEG, PNG or PPM image"):
            decode(data)


def test_sixteen_bits_a_channel_are_refused_rather_than_clipped():
    with pytest.raises(ValueError, match="8 bits"):
        decode(encode(np.full((4, 4), 40_000, np.uint16), "PNG"))


@pytest.mark.parametrize("shape", [(35, 35), (100, 75), (8, 8), (50, 20)])
def test_resizing_is_pillows_antialiased_bilinear(shape: tuple[int, int]):
    pixels = np.random.default_rng(2).integers(0, 256, (*shape, 3), np.uint8)
    expected = np.array(Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR))
    assert np.abs(resize(pixels, 32).astype(int) - expected.transpose(2, 0, 1)).max() <= 1


def test_an_image_of_the_right_size_is_left_alone():
    pixels = np.random.default_rng(3).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(decode_resized(encode(pixels, "PNG"), 16), pixels.transpose(2, 0, 1))


def test_a_region_is_cut_before_resizing():
    pixels = np.random.default_rng(4).integers(0, 256, (20, 30, 3), np.uint8)
    cut = decode_resized(encode(pixels, "PNG"), 8, region=(5, 2, 13, 10))
    assert np.array_equal(cut, pixels[2:10, 5:13].transpose(2, 0, 1))


@pytest.mark.parametrize("size", [16, 64, 128, 180])
def test_a_large_jpeg_decoded_small_looks_as_if_decoded_large(size: int):
    data = encode(gradient(375, 500), "JPEG")
    expected = resize(decode(data), size).astype(int)
    difference = np.abs(decode_resized(data, size) - expected)
    assert difference.mean() < 1 and difference.max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_the_size_is_width_then_height(kind: str):
    assert image_size(encode(gradient(10, 30), kind)) == (30, 10)
