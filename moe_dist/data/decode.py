"""From an encoded image to pixels: the only place that decodes, and the only formats that are read."""

from __future__ import annotations

import io

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

EXTENSIONS = ("jpg", "jpeg", "png", "ppm")
_FORMATS = ("JPEG", "PNG", "PPM")  # Pillow guesses from the content: an EPS called .jpg must not reach Ghostscript
_JPEG = b"\xff\xd8"
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")

Region = tuple[int, int, int, int]
"""A region of interest (x1, y1, x2, y2) in pixels, x2 and y2 not included."""


def decode(data: bytes) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of a JPEG, PNG or PPM image; grey becomes RGB, transparency is dropped.

    Raises ValueError where the image is truncated, damaged, of another format or has 16 bits a channel.
    """
    if data.startswith(_JPEG) and _fast_jpeg_sides(data):
        return simplejpeg.decode_jpeg(data)
    return _decode_with_pillow(data)


def decode_resized(data: bytes, size: int, region: Region | None = None) -> np.ndarray:
    """The image, cut to `region` where one is given, resized to [3, size, size] uint8.

    The aspect ratio is not kept. A whole JPEG at least twice as large as needed is decoded at a half, a quarter or an
    eighth of its size, which the JPEG's own transform does at less than the cost of a full decode.
    Raises ValueError like `decode`.
    """
    if region is None:
        return resize(_decode_at_least(data, size), size)
    x1, y1, x2, y2 = region
    return resize(np.ascontiguousarray(decode(data)[y1:y2, x1:x2]), size)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """`pixels` [H, W, 3] uint8 as [3, size, size] uint8: bilinear, antialiased, the aspect ratio not kept."""
    if pixels.shape[:2] == (size, size):
        return pixels.transpose(2, 0, 1)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # channels-last: torch's fast uint8 kernel
    return functional.interpolate(image, size=(size, size), mode="bilinear", antialias=True)[0].numpy()


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels from an image's header. Raises ValueError where there is none."""
    return _open_with_pillow(data).size


def _decode_at_least(data: bytes, size: int) -> np.ndarray:
    """The image, a JPEG at the smallest power-of-two fraction of its size that still covers `size` x `size` pixels."""
    sides = _fast_jpeg_sides(data) if data.startswith(_JPEG) else None
    if sides is None:
        return _decode_with_pillow(data)
    height, width = sides
    shrink = next((factor for factor in (8, 4, 2) if min(height, width) >= factor * size), 1)
    return simplejpeg.decode_jpeg(data, min_height=-(-height // shrink), min_width=-(-width // shrink))


def _fast_jpeg_sides(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that simplejpeg decodes; None for CMYK and rare layouts, which Pillow reads."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours in ("CMYK", "YCCK") else (height, width)


def _open_with_pillow(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError("not a JPEG, PNG or PPM image") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged image: {error}") from None


def _decode_with_pillow(data: bytes) -> np.ndarray:
    image = _open_with_pillow(data)
    if image.mode in _WIDE_MODES:
        raise ValueError("more than 8 bits a channel: convert the image to 8 bits")
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged image: {error}") from None
