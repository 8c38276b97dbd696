"""Parts of an image, by arithmetic on whole pixels.

Random crops are torchvision's RandomResizedCrop, the centre square is its Resize and CenterCrop; the random numbers,
uniform in [0, 1), are the caller's. Letters: n images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Region = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in pixels, x2 and y2 not included."""
_TRIES = 10
_WIDEST = 4 / 3
"""Largest aspect ratio (width / height) of a random crop; its inverse is the smallest."""
CROP_DRAWS = 2 * _TRIES + 2
"""Random numbers that a crop takes: area and aspect ratio of every try, then the place."""
_FRAME = 8 / 7
"""The resized short side over that of its centre square, as in 256 to 224."""
_LONGEST = 64


@dataclass(frozen=True)
class RandomCrop:
    """A random crop of each of n images.

    scale: smallest and largest share of the area; draws [n, CROP_DRAWS] float64 in [0, 1), row i for image i alone.
    """

    scale: tuple[float, float]
    draws: np.ndarray

    def region(self, row: int, whole: Region) -> Region:
        """The part of `whole` (the image, or its region of interest) to which image `row` of n is cropped."""
        x1, y1, x2, y2 = whole
        part = random_region(x2 - x1, y2 - y1, self.scale, self.draws[row].tolist())
        return x1 + part[0], y1 + part[1], x1 + part[2], y1 + part[3]


def random_region(width: int, height: int, scale: tuple[float, float], draws: Sequence[float]) -> Region:
    """A region of an image of `width` x `height` pixels, by the rule of torchvision's RandomResizedCrop.

    Its share of the area is uniform in `scale` and its aspect ratio log-uniform in [3/4, 4/3]. The first of ten tries
    that fits is taken, at a uniform place; where none fits, the largest centred region of an allowed aspect ratio.
    draws [CROP_DRAWS]: ten areas, ten aspect ratios, the place across and down.
    """
    smallest, largest = scale
    for area_draw, aspect_draw in zip(draws[:_TRIES], draws[_TRIES : 2 * _TRIES]):
        area = width * height * (smallest + (largest - smallest) * area_draw)
        aspect = _WIDEST ** (2 * aspect_draw - 1)
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            x1 = int(draws[-2] * (width - across + 1))
            y1 = int(draws[-1] * (height - down + 1))
            return x1, y1, x1 + across, y1 + down
    across, down = min(width, round(height * _WIDEST)), min(height, round(width * _WIDEST))
    x1, y1 = (width - across) // 2, (height - down) // 2
    return x1, y1, x1 + across, y1 + down


def resized_sides(width: int, height: int, size: int) -> tuple[int, int]:
    """The (width, height) to which an image is resized before its centre square of `size` pixels is cut.

    The short side becomes 8/7 of `size` to the nearest pixel, the long one keeps the aspect ratio, rounded down.
    Raises ValueError where one side is more than 64 times the other: the resized image would not fit into memory.
    """
    if max(width, height) > _LONGEST * min(width, height):
        raise ValueError(f"{width} x {height} pixels: too long and thin for a centre square")
    short = round(size * _FRAME)
    return max(short, short * width // height), max(short, short * height // width)


def centre_square(width: int, height: int, size: int) -> Region:
    """The square of `size` pixels at the centre of an image that is at least as large."""
    x1, y1 = round((width - size) / 2), round((height - size) / 2)
    return x1, y1, x1 + size, y1 + size
