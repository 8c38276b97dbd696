"""Images that are made of others: several splits as one, and images with noise.

Letters: n images that are asked for, N images of a split, S image side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from moe_dist.data.batch import Images
from moe_dist.data.image.crops import RandomCrop
from moe_dist.data.opened.vectors import Vectors
from moe_dist.errors import UserError
from moe_dist.settings.data import NoiseConfig


class JoinedImages:
    """The images of several splits, numbered through in the splits' order; counts: the images of each."""

    def __init__(self, parts: Sequence[Images], counts: Sequence[int]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """See Images. A crop is of images in the order in which they are asked for, so it is given to one part only."""
        where = np.searchsorted(self._ends, samples, side="right")
        assert crop is None or len(np.unique(where)) <= 1
        found: Tensor | None = None
        for number, rows, own in self._by_part(samples, where):
            values = self._parts[number].uint8(own, crop)
            found = values.new_empty((len(samples), *values.shape[1:])) if found is None else found
            found[torch.from_numpy(rows)] = values
        return self._parts[0].uint8(samples[:0]) if found is None else found

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] are readable, [n] bool."""
        readable = np.ones(len(samples), bool)
        for number, rows, own in self._by_part(samples, np.searchsorted(self._ends, samples, side="right")):
            readable[rows] = self._parts[number].readable(own)
        return readable

    def _by_part(self, samples: np.ndarray, where: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """(number of the part, places among `samples`, the part's own numbers) of the parts that are asked for."""
        starts = np.append(0, self._ends)
        rows = {int(number): np.flatnonzero(where == number) for number in np.unique(where)}
        return [(number, places, samples[places] - starts[number]) for number, places in rows.items()]


def with_noise(images: Images, config: NoiseConfig, split: int) -> Images:
    """The images with noise; split: the number of their split. Raises UserError for vectors."""
    if isinstance(images, Vectors):
        raise UserError("data.noise is of the pixels of images, and the dataset's samples are vectors; leave it out")
    return NoisyImages(images, config, split)


class NoisyImages:
    """Images whose noise depends on their number in their split alone: every run, rank and epoch sees the same."""

    def __init__(self, images: Images, config: NoiseConfig, split: int) -> None:
        self._images, self._config, self._split = images, config, split

    def uint8(self, samples: np.ndarray, crop: RandomCrop | None = None) -> Tensor:
        """See Images. A random crop is cut first: its noise is that of the image's corner."""
        clean = self._images.uint8(samples, crop)
        for row, sample in enumerate(np.asarray(samples).tolist()):
            clean[row] = torch.from_numpy(self._with_noise(clean[row].numpy(), sample))
        return clean

    def readable(self, samples: np.ndarray) -> np.ndarray:
        """Which of `samples` [n] are readable, [n] bool."""
        return self._images.readable(samples)

    def _with_noise(self, pixels: np.ndarray, sample: int) -> np.ndarray:
        """One image [3, S, S] uint8."""
        kind, amount = self._config.kind, self._config.amount
        draws = np.random.Generator(np.random.Philox(key=[self._split, sample]))
        if kind == "salt_pepper":
            drawn = draws.random(pixels.shape[1:], np.float32)
            white = (drawn < amount / 2).astype(np.uint8) * 255
            return np.where(drawn < amount, white, pixels)
        noise = np.sqrt(amount) * draws.standard_normal(pixels.shape[1:], np.float32)
        shares = pixels / np.float32(255)
        changed = shares + (noise if kind == "gaussian" else shares * noise)
        return np.round(255 * changed.clip(0, 1)).astype(np.uint8)
