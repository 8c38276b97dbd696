"""Decoding against Pillow, and refusals."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from pictures import encode, gradient
from PIL import Image

from moe_dist.data.image import decode as decode_room
from moe_dist.data.image.decode import decode, decode_resized, image_size, resize
from moe_dist.vision import torchvision


@pytest.fixture
def without_fast_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """simplejpeg and imagecodecs, as if they were not installed."""
    monkeypatch.setattr(decode_room, "simplejpeg", None)
    monkeypatch.setattr(decode_room, "imagecodecs", None)


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
    assert np.abs(resize(pixels, 32, 32).astype(int) - expected.transpose(2, 0, 1)).max() <= 1


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
    expected = resize(decode(data), size, size).astype(int)
    difference = np.abs(decode_resized(data, size) - expected)
    assert difference.mean() < 1 and difference.max() < 16


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_the_size_is_width_then_height(kind: str):
    assert image_size(encode(gradient(10, 30), kind)) == (30, 10)


def slope(height: int, width: int) -> float:
    """The largest step between neighbouring pixels of a gradient, in grey levels, before it is rounded."""
    return 255 / min(height, width)


@pytest.mark.parametrize("region", [(37, 21, 498, 373), (0, 5, 300, 330), (101, 100, 360, 310)])
@pytest.mark.parametrize("size", [20, 50, 100, 150, 224])
def test_a_region_of_a_jpeg_is_cut_before_resizing(region: tuple[int, int, int, int], size: int):
    """Decoded at 1/d, a region is off by half a pixel of d: d / 2 times the slope, and a few levels of the JPEG."""
    x1, y1, x2, y2 = region
    data = encode(gradient(375, 500), "JPEG")
    cut = torchvision().transforms.v2.functional.resized_crop
    whole = Image.open(io.BytesIO(data))
    expected = np.asarray(cut(whole, y1, x1, y2 - y1, x2 - x1, [size, size])).transpose(2, 0, 1).astype(int)
    divisor = max([1, *(d for d in (2, 4, 8) if min(x2 - x1, y2 - y1) >= d * size)])
    allowed = 1 if divisor == 1 else 3 + divisor / 2 * slope(375, 500)
    assert np.abs(decode_resized(data, size, region) - expected).max() <= allowed


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (60, 60)])
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_centre_square_is_torchvisions(shape: tuple[int, int], size: int, kind: str):
    data = encode(gradient(*shape), kind)
    transforms = torchvision().transforms.v2
    resized = transforms.Resize(round(size * 8 / 7))(Image.open(io.BytesIO(data)))
    expected = np.asarray(transforms.CenterCrop(size)(resized)).transpose(2, 0, 1).astype(int)
    found = decode_resized(data, size, frame="centre_crop")
    assert found.shape == (3, size, size)
    assert np.abs(found - expected).max() <= (1 if kind == "PNG" or size == 224 else 4)


def test_the_centre_square_of_a_region():
    pixels = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    inner = decode_resized(encode(pixels[3:33, 10:55], "PNG"), 16, frame="centre_crop")
    assert np.array_equal(decode_resized(encode(pixels, "PNG"), 16, (10, 3, 55, 33), "centre_crop"), inner)


@pytest.mark.parametrize("region", [None, (37, 21, 498, 373)])
@pytest.mark.parametrize("size", [20, 50, 100, 224])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_pillow_alone_decodes_nearly_the_same(
    region: tuple[int, int, int, int] | None, size: int, mode: str, monkeypatch: pytest.MonkeyPatch
):
    encoded = io.BytesIO()
    Image.fromarray(gradient(375, 501)).convert(mode).save(encoded, "JPEG", quality=95)
    fast = decode_resized(encoded.getvalue(), size, region).astype(int)
    monkeypatch.setattr(decode_room, "simplejpeg", None)
    assert np.abs(decode_resized(encoded.getvalue(), size, region) - fast).max() <= 2


@pytest.mark.usefixtures("without_fast_decoders")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM"])
def test_pillow_alone_reads_and_refuses_every_format(kind: str):
    data = encode(gradient(40, 56), kind)
    assert image_size(data) == (56, 40)
    assert np.array_equal(decode(data), pillow(data))
    for refused in (decode, lambda cut: decode_resized(cut, 16)):
        with pytest.raises(ValueError):
            refused(data[: len(data) // 2])


def test_the_package_imports_without_fast_decoders():
    hidden = "import sys; sys.modules['simplejpeg'] = sys.modules['imagecodecs'] = None\n"
    script = f"{hidden}import moe_dist.cli, moe_dist.data.image.decode as room\n"
    script += "print(room.simplejpeg, room.imagecodecs)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.split() == ["None", "None"], done.stderr


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "1"])
def test_a_png_of_any_mode_is_what_pillow_makes_of_it(mode: str):
    encoded = io.BytesIO()
    Image.fromarray(gradient(9, 7)).convert(mode).save(encoded, "PNG")
    assert np.array_equal(decode(encoded.getvalue()), pillow(encoded.getvalue()))


def test_a_damaged_png_is_refused_by_the_fast_decoder_wherever_pillow_refuses_it():
    """Every bit of a small file flipped in turn."""
    pytest.importorskip("imagecodecs")
    whole = encode(np.random.default_rng(6).integers(0, 256, (6, 5, 3), np.uint8), "PNG")

    def outcome(read, data: bytes) -> bytes | None:
        try:
            return read(data).tobytes()
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            return None

    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        assert outcome(decode, bytes(damaged)) == outcome(decode_with_pillow_alone, bytes(damaged)), bit


def decode_with_pillow_alone(data: bytes) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "PPM")).convert("RGB"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_header_that_claims_too_many_pixels_is_refused_before_memory_is_taken(kind: str):
    """60,000 x 60,000 pixels would be 10.8 GB."""
    data = bytearray(encode(gradient(16, 16), kind))
    if kind == "JPEG":
        frame = data.index(b"\xff\xc0")
        struct.pack_into(">HH", data, frame + 5, 60_000, 60_000)
    else:
        struct.pack_into(">II", data, 16, 60_000, 60_000)
        struct.pack_into(">I", data, 29, zlib.crc32(bytes(data[12:29])))
    for refused in (decode, lambda cut: decode_resized(cut, 16)):
        with pytest.raises(ValueError, match="decompression bomb"):
            refused(bytes(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "but an empty file: get it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\n", "but a Git LFS pointer: fetch the image by"),
        (b"\n<!DOCTYPE HTML><html>", "but a web page: download it again"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "but WebP: convert it"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "but HEIC: convert it"),
        (b"GIF89a" + bytes(20), "but GIF: convert it"),
        (b"BM" + bytes(60), "but BMP: convert it"),
        (b"II*\0" + bytes(20), "but TIFF: convert it"),
        (b"noise", "image$"),
    ],
)
def test_what_is_called_an_image_and_is_none_is_said(data: bytes, words: str):
    for read in (decode, image_size):
        with pytest.raises(ValueError, match=rf"not a JPEG, PNG or PPM image(, )?{words}|PPM {words}"):
            read(data)
