"""Small datasets, made by hand, for the tests of the data room."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real images in {SHARED_DATA}")
    return SHARED_DATA


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


def write_image_folder(root: Path, classes: Sequence[str] = ("ant", "bee", "cat"), train: int = 8, test: int = 3) -> Path:
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


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 3 classes, 8 training and 3 test pictures each, 12 x 10 pixels."""
    return write_image_folder(tmp_path / "pictures")


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The shards of `image_folder`: train in three shards of 10, 10 and 4 samples."""
    from moe_dist.data.shards import build_shards

    build_shards("image_folder", image_folder, tmp_path / "shards", samples_per_shard=10)
    return tmp_path / "shards"


WriteTar = Callable[[Path, Sequence[tuple[str, bytes]]], Path]
