"""A split's images at one size: decoded once into an array that processes share, or decoded each time.

Letters: N images of the split, n of them, S image side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.bad_samples import NONE_ALLOWED, BadSample, BadSamples
from moe_dist.data.batch import Images
from moe_dist.data.image.crops import RandomCrop, Region
from moe_dist.data.image.decode import Frame, decode_resized, image_size, resize
from moe_dist.data.opened.vectors import Vectors
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage.locks import in_turn
from moe_dist.errors import UserError
from moe_dist.files import read_json, whole_file, write_json
from moe_dist.settings.data import DataConfig

DECODED_LIMIT_BYTES = 2 * 2**30
"""`decode: auto` decodes a split once up to this size of its array."""
_WRITE_IMAGES = 256
_PIXELS_VERSION = 2
"""Raised when the same image and size give other pixels, so that an older version's array is not read."""


def open_images(shards: ShardSet, config: DataConfig, cache: Path, bad_samples: BadSamples = NONE_ALLOWED) -> Images:
    """The images or vectors of `shards`; images are decoded when the job says, into arrays in `cache`.

    Raises UserError where an image cannot be decoded and `bad_samples` does not take it, or no array can be written.
    """
    if shards.holds_vectors:
        return Vectors(shards, bad_samples)
    images = EncodedImages(shards, config.image_size, config.crop_roi, bad_samples, config.frame)
    size_bytes = len(images) * 3 * config.image_size**2
    if config.decode == "each_time" or (config.decode == "auto" and size_bytes > DECODED_LIMIT_BYTES):
        return images
    return DecodedImages(images, cache)


class EncodedImages:
    """Images that are decoded at every access."""

    def __init__(
        self,
        shards: ShardSet,
        size: int,
        crop_roi: bool,
        bad_samples: BadSamples = NONE_ALLOWED,
        frame: Frame = "stretch",
    ) -> None:
        self.shards = shards
        self.size = size
        self.crop_roi = crop_roi
        self.frame = frame
        self._bad_samples = bad_samples
        self._unreadable: set[int] = set()

    def __len__(self) -> int:
        return len(self.shards)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The images `samples` [n], [n, 3, S, S] uint8; one that cannot be read or decoded is black.

        crop: a random part of each, cut before it is resized, instead of the whole in its frame.
        Raises UserError where the job allows no (or no more) bad samples.
        """
        pixels = torch.empty((len(samples), 3, self.size, self.size), dtype=torch.uint8)
        for row, sample in enumerate(np.asarray(samples).tolist()):
            try:
                pixels[row] = torch.from_numpy(self._decode(sample, row, crop))
                self._unreadable.discard(sample)
            except BadSample as problem:
                self._bad_samples.take(problem)
                self._unreadable.add(sample)
                pixels[row] = 0
        return pixels

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] were readable when `uint8` of this process last decoded them, [n] bool."""
        return ~np.isin(samples, list(self._unreadable))

    def _decode(self, sample: int, row: int, crop: RandomCrop | None) -> np.ndarray:
        """One image [3, S, S] uint8, with the crop of its `row`. Raises BadSample."""
        data = self.shards.read(sample)
        region: Region | None = None
        if self.crop_roi and self.shards.rois[sample, 0] >= 0:
            x1, y1, x2, y2 = self.shards.rois[sample].tolist()
            region = x1, y1, x2, y2
        try:
            if crop is None:
                return decode_resized(data, self.size, region, self.frame)
            return decode_resized(data, self.size, crop.region(row, region or (0, 0, *image_size(data))))
        except ValueError as error:
            raise BadSample(f"{self.shards.where(sample)}: {error}") from None


class DecodedImages:
    """Images that are decoded once into an array file, which all processes of a node map into memory and share."""

    def __init__(self, source: EncodedImages, cache: Path) -> None:
        self._source = source
        self._cache = cache
        form = f"{source.size}{'-roi' if source.crop_roi else ''}{'-centre' if source.frame == 'centre_crop' else ''}"
        path = cache / f"{source.shards.digest[:20]}-{form}-v{_PIXELS_VERSION}.npy"
        if not _ready(source, path):
            _decode_in_turn(source, path)
        self._pixels = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        assert self._pixels.shape == (len(source), 3, source.size, source.size)

    def __len__(self) -> int:
        return len(self._pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the images come from: another process maps the array, another node decodes one of its own."""
        return DecodedImages, (self._source, self._cache)

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """The images `samples` [n], [n, 3, S, S] uint8; crop: a random part of each square instead of the whole."""
        images = torch.from_numpy(self._pixels[samples])
        return images if crop is None else cropped(images, crop)

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] are readable, [n] bool."""
        return self._source.readable(samples)


def cropped(images: Tensor, crop: RandomCrop) -> Tensor:
    """A random part of each of `images` [n, 3, S, S] uint8, resized to [n, 3, S, S] uint8.

    Shares of the area and aspect ratios are the square's, which may have been stretched or cut when it was decoded.
    """
    size = images.shape[-1]
    parts = torch.empty_like(images)
    for row, image in enumerate(images):
        x1, y1, x2, y2 = crop.region(row, (0, 0, size, size))
        part = image[:, y1:y2, x1:x2].permute(1, 2, 0).numpy()
        parts[row] = torch.from_numpy(resize(part, size, size))
    return parts


def _bad_file(path: Path) -> Path:
    """The list of the bad samples in the array file `path`; the file is missing where all images are good."""
    return path.with_name(f"{path.name}.bad.json")


def _ready(source: EncodedImages, path: Path) -> bool:
    """Whether the array at `path` is there and no sample that is black in it can be read now.

    Those that still cannot be read are noted again. Raises UserError where the job allows no (or no more) bad samples.
    """
    if not path.is_file():
        return False
    if not _bad_file(path).is_file():
        return True
    listed = read_json(_bad_file(path))
    if listed is None:  # lost, or gone since with the array that it was of
        return False
    bad = np.array(listed, np.int64)
    source.uint8(bad)
    return not source.readable(bad).any()


def _decode_in_turn(source: EncodedImages, path: Path) -> None:
    """Write the array file `path`, unless another process of this node does so first. Raises UserError."""
    try:
        with in_turn(path.with_name(f".{path.name}.lock")):
            if not _ready(source, path):
                _decode_all(source, path)
    except OSError as error:
        needed = len(source) * 3 * source.size**2 / 2**20
        raise UserError(
            f"{path.parent}: cannot write {needed:.0f} MiB of decoded images ({error.strerror}); free space or set "
            "data.decode=each_time"
        ) from None


def _decode_all(source: EncodedImages, path: Path) -> None:
    """Write every image of `source` to the array file `path`, and the list of its bad samples beside it.

    Until both are in place the list also names the bad samples of the array before: a process that opens the images in
    between looks at them again. The array is written as a stream, not through a memory map: a full disk is then an
    error rather than a SIGBUS.
    """
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(source), 3, source.size, source.size)}
    with whole_file(path) as partial:
        with partial.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for start in range(0, len(source), _WRITE_IMAGES):
                samples = np.arange(start, min(start + _WRITE_IMAGES, len(source)))
                file.write(source.uint8(samples).numpy().tobytes())
        bad = np.flatnonzero(~source.readable(np.arange(len(source))))
        before = read_json(_bad_file(path)) or []
        if bad.size:
            write_json(_bad_file(path), sorted({*before, *bad.tolist()}))
    if not bad.size:
        _bad_file(path).unlink(missing_ok=True)
    elif before:
        write_json(_bad_file(path), bad.tolist())
