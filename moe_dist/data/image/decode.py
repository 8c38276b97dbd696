"""Decoding images: the only place that does, and the only formats that are read.

Pillow reads all of them. simplejpeg and imagecodecs, where they are installed, read most JPEGs and PNGs faster. An
image that they refuse goes to Pillow, which reads it or says what is wrong. Letters: H, W an image's height and width.
"""

from __future__ import annotations

import io
import struct
from typing import Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional

from moe_dist.data.image.crops import Region, centre_square, resized_sides

try:
    import simplejpeg
except ImportError:
    simplejpeg = None
try:
    import imagecodecs
except ImportError:
    imagecodecs = None  # type: ignore[assignment]

EXTENSIONS = ("jpg", "jpeg", "png", "ppm")
Frame = Literal["stretch", "centre_crop"]
_FORMATS = ("JPEG", "PNG", "PPM")  # Pillow guesses from the content: an EPS called .jpg must not reach Ghostscript
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_HEADER = struct.Struct(">IIBB")
_PLAIN_PNGS = ((8, 0), (8, 2))
"""(bits, colour type) of the PNGs that imagecodecs decodes: grey or RGB, without a palette and transparency."""
_NO_IMAGES = (
    (b"version https://git-lfs", "a Git LFS pointer: fetch the image by `git lfs pull`"),
    (b"<!doctype html", "a web page: download it again"),
    (b"<html", "a web page: download it again"),
)
_OTHER_FORMATS = (
    (8, b"WEBP", "WebP"),
    (4, b"ftyphei", "HEIC"),
    (4, b"ftypmif", "HEIC"),
    (4, b"ftypavif", "AVIF"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
)
"""(place, bytes there, name) of formats that files called .jpg and .png often have."""
_WIDE_MODES = ("I", "I;16", "I;16B", "I;16L", "F")


def decode(data: bytes, shrink: int = 1) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of a JPEG, PNG or PPM image; grey becomes RGB, transparency is dropped.

    shrink: a JPEG can be decoded to [H / shrink, W / shrink, 3], sides rounded up.
    Raises ValueError where the image is truncated, damaged, of another format or has 16 bits a channel.
    """
    if (size := _fast_jpeg_size(data)) is not None:
        width, height = size
        return simplejpeg.decode_jpeg(data, min_height=-(-height // shrink), min_width=-(-width // shrink))
    if imagecodecs is not None and (header := _png_header(data)) is not None:
        width, height, *layout = header
        if tuple(layout) in _PLAIN_PNGS and not _is_huge(width, height):
            try:
                pixels = imagecodecs.spng_decode(data)
            except imagecodecs.SpngError:
                return _decode_with_pillow(data, shrink)
            return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=-1)
    return _decode_with_pillow(data, shrink)


def decode_resized(data: bytes, size: int, region: Region | None = None, frame: Frame = "stretch") -> np.ndarray:
    """The image, cut to `region` where one is given, as [3, size, size] uint8.

    frame: stretch does not keep the aspect ratio; centre_crop takes the centre square of the image resized to 8/7 of
    `size` on its short side. A JPEG at least twice as large as needed is decoded at a half, a quarter or an eighth of
    its size, which costs less than a full decode; a region is then cut to the nearest of the pixels that are left.
    Raises ValueError like `decode`.
    """
    x1, y1, x2, y2 = region or (0, 0, *image_size(data))
    width, height = x2 - x1, y2 - y1
    across, down = _resized_to(width, height, size, frame)
    spare = min(width / across, height / down) if data.startswith(_JPEG) else 1
    shrink = next((divisor for divisor in (8, 4, 2) if spare >= divisor), 1)  # at 5/8 a JPEG takes longer than whole
    pixels = decode(data, shrink)
    if region is not None:
        left, top, right, bottom = (round(edge / shrink) for edge in region)
        pixels = pixels[top:bottom, left:right]
    return _square(pixels, across, down, size)


def squared(pixels: np.ndarray, size: int, frame: Frame = "stretch") -> np.ndarray:
    """A decoded image [H, W, 3] uint8 as [3, size, size] uint8, in the frame of `decode_resized`.

    Raises ValueError where it has no centre square.
    """
    height, width = pixels.shape[:2]
    return _square(pixels, *_resized_to(width, height, size, frame), size)


def resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """`pixels` [H, W, 3] uint8 as [3, height, width] uint8: bilinear, antialiased."""
    if pixels.shape[:2] == (height, width):
        return pixels.transpose(2, 0, 1)
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # uint8, channels last: torch has a fast kernel for it
    return functional.interpolate(image, size=(height, width), mode="bilinear", antialias=True)[0].numpy()


def _resized_to(width: int, height: int, size: int, frame: Frame) -> tuple[int, int]:
    """The (width, height) to which an image is resized before its square is cut."""
    return (size, size) if frame == "stretch" else resized_sides(width, height, size)


def _square(pixels: np.ndarray, across: int, down: int, size: int) -> np.ndarray:
    """The centre square [3, size, size] of an image that is resized to `across` x `down` pixels."""
    left, top, right, bottom = centre_square(across, down, size)
    return resize(pixels, across, down)[:, top:bottom, left:right]


def image_size(data: bytes) -> tuple[int, int]:
    """The (width, height) in pixels of an image, from its header. Raises ValueError where there is none."""
    header = _fast_jpeg_size(data) or _png_header(data)
    return header[:2] if header is not None else _open_with_pillow(data).size


def _fast_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """The (width, height) of a JPEG that simplejpeg decodes; None for any other image, which Pillow reads."""
    if simplejpeg is None or not data.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return None if colours in ("CMYK", "YCCK") or _is_huge(width, height) else (width, height)


def _png_header(data: bytes) -> tuple[int, int, int, int] | None:
    """The (width, height, bits, colour type) of a PNG; None for any other image."""
    whole = data.startswith(_PNG) and len(data) >= len(_PNG) + _PNG_HEADER.size
    return _PNG_HEADER.unpack_from(data, len(_PNG)) if whole else None


def _is_huge(width: int, height: int) -> bool:
    """Whether an image claims so many pixels that it may be an attack, which is left to Pillow."""
    assert Image.MAX_IMAGE_PIXELS is not None
    return width * height > Image.MAX_IMAGE_PIXELS


def _in_words(data: bytes) -> str:
    """What the bytes of something else are, for a message; "" where they do not tell."""
    if not data:
        return ", but an empty file: get it again"
    beginning = data[:32].lstrip().lower()
    return next((f", but {what}" for start, what in _NO_IMAGES if beginning.startswith(start)), "") or next(
        (f", but {what}: convert it" for place, mark, what in _OTHER_FORMATS if data[place:].startswith(mark)), ""
    )


def _open_with_pillow(data: bytes) -> Image.Image:
    """The image with its header read. Raises ValueError where that is damaged or of another format."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"not a JPEG, PNG or PPM image{_in_words(data)}") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"damaged image: {error}") from None


def _decode_with_pillow(data: bytes, shrink: int) -> np.ndarray:
    """The pixels as `decode` gives them. Raises ValueError."""
    image = _open_with_pillow(data)
    if shrink > 1:
        image.draft("RGB", (image.width // shrink, image.height // shrink))
    return pixels_of(image)


def pixels_of(image: Image.Image) -> np.ndarray:
    """The pixels [H, W, 3] uint8 of an image that Pillow has opened, as `decode` gives them. Raises ValueError."""
    if image.mode in _WIDE_MODES:
        raise ValueError("more than 8 bits a channel: convert the image to 8 bits")
    try:
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"damaged image: {error}") from None
