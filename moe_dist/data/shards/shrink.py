"""Large images made smaller when shards are built, so that training decodes no pixels it throws away."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from moe_dist.data.datasets.samples import Sample, scaled_region


@dataclass(frozen=True)
class Shrink:
    """Images whose short side is above `short_side` pixels are resized to it, as JPEGs of `quality` (1 to 100)."""

    short_side: int
    quality: int = 90


def shrunk(sample: Sample, pixels: np.ndarray, shrink: Shrink) -> Sample:
    """`sample`, whose image is `pixels` [H, W, 3], made smaller; itself, byte for byte, where it is small enough.

    The aspect ratio is kept to the nearest pixel, Pillow's bicubic filter is antialiased, and the region of interest
    is scaled with the image and grown to whole pixels.
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= shrink.short_side:
        return sample
    import simplejpeg  # the package imports without it

    size = (round(width * shrink.short_side / short), round(height * shrink.short_side / short))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(resized), shrink.quality, colorsubsampling="420")
    roi = None if sample.roi is None else scaled_region(sample.roi, (width, height), size)
    return replace(sample, image=encoded, extension="jpg", roi=roi)
