"""Pictures, folders and tars, made by hand, for the tests of the data room."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def encode(pixels: np.ndarray, kind: str) -> bytes:
    """Pixels [H, W, 3] or [H, W] as an image file of `kind`."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return encoded.getvalue()


def gradient(height: int, width: int, shade: int = 0) -> np.ndarray:
    """A smooth picture [height, width, 3] whose corners differ."""
    rows, columns = np.mgrid[0:height, 0:width]
    red, green = 255 * rows // height, 255 * columns // width
    return np.stack([red, green, np.full_like(red, shade)], axis=-1).astype(np.uint8)


def write_image_folder(
    root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), train: int = 8, test: int = 3
) -> Path:
    """train|test/<class>/<number>.png under `root`; every picture is different."""
    for split, count in (("train", train), ("test", test)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                picture = gradient(10, 12, shade=40 * label + number + (20 if split == "test" else 0))
                (folder / f"{number:03d}.png").write_bytes(encode(picture, "PNG"))
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """A plain tar of `members`, in order."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path
