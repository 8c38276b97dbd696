"""Settings of the random changes of training images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moe_dist.settings.schema import Fraction, NonNegative, Strict

MOST_RANDAUGMENT_OPERATIONS = 8
"""The operations of an image for which random numbers are set aside."""


def _ascending(shares: tuple[float, float]) -> tuple[float, float]:
    """`shares` where the first is the smaller. Raises ValueError, saying what to write, where it is not."""
    if shares[0] > shares[1]:
        raise ValueError(f"the smaller share comes first: write [{shares[1]:g}, {shares[0]:g}]")
    return shares


AreaShares = Annotated[tuple[Fraction, Annotated[float, Field(gt=0, le=1)]], AfterValidator(_ascending)]


class AugmentConfig(Strict):
    """Random changes of a training image, drawn per sample from (seed, epoch, sample). All off by default."""

    shift: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Largest translation, as a fraction of the side."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation, in degrees."""
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest change of scale: factors in [1 - zoom, 1 + zoom]."""
    flip: bool = False
    """Horizontal flip with probability one half."""
    brightness: Annotated[float, Field(ge=0, le=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Factors in [1 - v, 1 + v], of the value v of either."""
    cutout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Side of one square that is cut out, as a fraction of the image side."""
    cutout_fill: Literal["grey", "black"] = "grey"
    """What takes its place: grey, near 0 once images are normalised (the Cutout paper); black, 0 before they are, as
    the public code of SHIKE, ICL and NCL has it."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """A crop of the image's own size from the image with this many black pixels added on every side."""
    resized_crop: AreaShares | None = None
    """Smallest and largest share of the area that a random crop keeps; aspect ratio 3/4 to 4/3; resized to the side."""
    policy: Literal["autoaugment_cifar10", "autoaugment_imagenet", "randaugment"] | None = None
    """A published policy, whose operations are drawn anew for every image."""
    randaugment_operations: Annotated[int, Field(ge=1, le=MOST_RANDAUGMENT_OPERATIONS)] = 2
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """randaugment: operations an image gets, and their strength on torchvision's scale of 31."""
    mixup: NonNegative = 0.0
    """alpha of MixUp: an image and another one of the batch, and their labels, are blended by Beta(alpha, alpha)."""
    cutmix: NonNegative = 0.0
    """alpha of CutMix: an image gets a rectangle of another one. With both, either is used with probability 1/2."""
