"""A split's images, ready at one size: decoded once into a shared array, or decoded each time."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.config import DataConfig
from moe_dist.data.decode import Region, decode_resized
from moe_dist.data.shards import ShardSet
from moe_dist.errors import UserError
from moe_dist.methods.base import Images

MEMORY_LIMIT_BYTES = 2 * 2**30
"""`hold: auto` keeps a split in memory up to this size."""
_WRITE_IMAGES = 256
_PIXELS_VERSION = 1
"""Raised when the same image and size give other pixels, so that no array of an older version is read."""


def open_images(shards: ShardSet, config: DataConfig, cache: Path) -> Images:
    """The images of `shards` as the job's data settings want them held; `cache` is this node's folder for arrays.

    Raises UserError where an image cannot be decoded or the array cannot be written.
    """
    images = DiskImages(shards, config.image_size, config.crop_roi)
    size_bytes = len(images) * 3 * config.image_size**2
    if config.hold == "disk" or (config.hold == "auto" and size_bytes > MEMORY_LIMIT_BYTES):
        return images
    return MemoryImages(images, cache)


class DiskImages:
    """Images decoded at every access."""

    def __init__(self, shards: ShardSet, size: int, crop_roi: bool) -> None:
        self.shards = shards
        self.size = size
        self.crop_roi = crop_roi

    def __len__(self) -> int:
        return len(self.shards)

    def uint8(self, samples: np.ndarray) -> Tensor:
        """The images `samples`, [n, 3, S, S] uint8. Raises UserError where one cannot be read or decoded."""
        pixels = np.empty((len(samples), 3, self.size, self.size), np.uint8)
        for row, sample in enumerate(np.asarray(samples).tolist()):
            pixels[row] = self._decode(sample)
        return torch.from_numpy(pixels)

    def _decode(self, sample: int) -> np.ndarray:
        data = self.shards.read(sample)
        try:
            return decode_resized(data, self.size, self._region(sample))
        except ValueError as error:
            raise UserError(f"{self.shards.where(sample)}: {error}") from None

    def _region(self, sample: int) -> Region | None:
        if not self.crop_roi or self.shards.rois[sample, 0] < 0:
            return None
        x1, y1, x2, y2 = self.shards.rois[sample].tolist()
        return x1, y1, x2, y2


class MemoryImages:
    """Images decoded once into one array file, which all processes of a node map into memory and share."""

    def __init__(self, source: DiskImages, cache: Path) -> None:
        self._source = source
        self._cache = cache
        crop = "-roi" if source.crop_roi else ""
        path = cache / f"{source.shards.digest[:20]}-{source.size}{crop}-v{_PIXELS_VERSION}.npy"
        if not path.is_file():
            _decode_all(source, path)
        self._pixels = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        assert self._pixels.shape == (len(source), 3, source.size, source.size)

    def __len__(self) -> int:
        return len(self._pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as where its images come from: another process maps, another node decodes, its own array."""
        return MemoryImages, (self._source, self._cache)

    def uint8(self, samples: np.ndarray) -> Tensor:
        """The images `samples`, [n, 3, S, S] uint8."""
        return torch.from_numpy(self._pixels[samples])


def _decode_all(source: DiskImages, path: Path) -> None:
    """Write every image of `source` to the array file `path`, which appears whole or not at all.

    Written as a stream rather than through a memory map: a full disk is then an error, not a SIGBUS.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), 3, source.size, source.size)}
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
            partial = Path(file.name)
            try:
                np.lib.format.write_array_header_1_0(file, header)
                for start in range(0, len(source), _WRITE_IMAGES):
                    samples = np.arange(start, min(start + _WRITE_IMAGES, len(source)))
                    file.write(source.uint8(samples).numpy().tobytes())
                file.flush()
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as error:
        needed = len(source) * 3 * source.size**2 / 2**20
        raise UserError(
            f"{path.parent}: cannot write {needed:.0f} MiB of decoded images ({error.strerror}); free space or set "
            "data.hold=disk"
        ) from None
