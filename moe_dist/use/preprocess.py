"""Images and vectors as a trained network sees them: decoded, squared and normalised as in its training.

Letters: n images, H, W an image's height and width, S the side of a square, D numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moe_dist.data.augment.augment import normalise
from moe_dist.data.image.decode import Frame, decode_resized, pixels_of, squared
from moe_dist.errors import UserError

GivenImage = str | Path | bytes | Image.Image | np.ndarray
"""A path, the bytes of a file, an opened image, or pixels [H, W] or [H, W, 3] uint8."""


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a sample before the network sees it.

    image_size: S. frame, mean, std: as in the job's `data`. crop_roi: whether the network was trained on images that
    were cut to regions of interest. vector_size: D where samples are vectors, which are not changed, else 0.
    """

    image_size: int
    frame: Frame
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_roi: bool = False
    vector_size: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: (3, S, S) or (D,)."""
        return (self.vector_size,) if self.vector_size else (3, self.image_size, self.image_size)

    def empty(self, count: int) -> Tensor:
        """`count` black squares uint8, or vectors of zeros float32."""
        return torch.zeros(count, *self.shape, dtype=torch.float32 if self.vector_size else torch.uint8)

    def sample(self, given: Any) -> Tensor:
        """A square [3, S, S] uint8 of an image, or a vector [D] float32, before normalising.

        Raises ValueError where an image is damaged or of a format that shards do not hold, a vector has another length
        or a number is not finite; OSError where a file cannot be read.
        """
        return torch.from_numpy(np.array(self._vector(given) if self.vector_size else self._square(given)))

    def normalised(self, samples: Tensor) -> Tensor:
        """Squares [n, 3, S, S] uint8 as float32 of the training's mean and deviation; vectors as they are."""
        return normalise(samples, self.mean, self.std)

    def _square(self, given: GivenImage) -> np.ndarray:
        if isinstance(given, str | Path):
            given = Path(given).read_bytes()
        if isinstance(given, bytes):
            return decode_resized(given, self.image_size, frame=self.frame)
        pixels = pixels_of(given) if isinstance(given, Image.Image) else _three_channels(np.asarray(given))
        return squared(pixels, self.image_size, self.frame)

    def _vector(self, given: Any) -> np.ndarray:
        values = np.asarray(given)
        if values.dtype.kind not in "fiub" or values.shape != (self.vector_size,):
            raise ValueError(f"expected {self.vector_size} numbers, got {values.dtype} {list(values.shape)}")
        with np.errstate(over="ignore"):
            numbers = values.astype(np.float32)
        if not np.isfinite(numbers).all():
            raise ValueError("a number of the vector is not finite")
        return numbers


def listed(given: Any) -> Sequence[Any]:
    """The samples that a caller gave: one of them becomes a list of one."""
    alone = isinstance(given, str | Path | bytes | Image.Image)
    if isinstance(given, np.ndarray):
        alone = given.ndim == 1 or (given.dtype == np.uint8 and (given.ndim == 2 or given.shape[2:] == (3,)))
    return [given] if alone else given


def in_words(given: Any, number: int) -> str:
    """A sample for messages: its path, or its number."""
    return str(given) if isinstance(given, str | Path) else f"sample {number + 1}"


def all_samples(preprocessing: Preprocessing, given: Sequence[Any], first: int = 0) -> Tensor:
    """Samples before normalising, [n, 3, S, S] or [n, D]. Raises UserError, which names the one that cannot be used.

    first: the number of the first of them, for messages.
    """
    samples = preprocessing.empty(len(given))
    for row, one in enumerate(given):
        try:
            samples[row] = preprocessing.sample(one)
        except (ValueError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{in_words(one, first + row)}: {reason}") from None
    return samples


def _three_channels(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W] or [H, W, 3] uint8 as [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)) or not pixels.size:
        raise ValueError(f"expected pixels [H, W] or [H, W, 3] of uint8, got {pixels.dtype} {list(pixels.shape)}")
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
