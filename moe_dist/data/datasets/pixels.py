"""Datasets that are published as arrays of pixels: an image becomes a PNG when it is read."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from moe_dist.data.datasets.samples import Sample


@dataclass(frozen=True)
class PixelSplit:
    """A split's images [N, H, W] or [N, H, W, 3] uint8 and labels [N] int64."""

    pixels: np.ndarray
    labels: np.ndarray


class PixelContents:
    """The `splits` of `source`. A pickled object leaves its pixels behind, and gets them again from `read(source)`.

    shuffled: whether the source's own order is known to be a shuffled one.
    """

    superclasses = None

    def __init__(
        self,
        source: Path,
        class_names: Sequence[str],
        splits: Mapping[str, PixelSplit],
        read: Callable[[Path], Mapping[str, PixelSplit]],
        shuffled: bool = False,
    ) -> None:
        self.shuffled = shuffled
        self.class_names = tuple(class_names)
        self.counts = {split: len(of_split.labels) for split, of_split in splits.items()}
        self._source = source
        self._read = read
        self._labels = {split: of_split.labels for split, of_split in splits.items()}
        self._pixels: dict[str, np.ndarray] = {split: of_split.pixels for split, of_split in splits.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": {}}

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return self._labels[split]

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`, a PNG; its key is made of its class and its number."""
        if not self._pixels:
            self._pixels = {name: of_split.pixels for name, of_split in self._read(self._source).items()}
        label = int(self._labels[split][number])
        image = encode_png(self._pixels[split][number])
        return Sample(
            f"{label:05d}/{number:06d}", label, image, "png", origin=f"{self._source}: {split} image {number}"
        )


def encode_png(pixels: np.ndarray) -> bytes:
    """Pixels [H, W] or [H, W, 3] uint8 as a PNG; equal pixels give equal bytes under one `encoder_version`."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG")
    return encoded.getvalue()


def encoder_version() -> str:
    """The version of the encoder, on which the bytes of `encode_png` depend."""
    return f"pillow {version('pillow')}"
