"""Random changes of a training image, as a job may set them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
)

from moe_dist.settings.schema import Fraction, NonNegative, Strict

MOST_RANDAUGMENT_OPERATIONS = 8
"""Random numbers are set aside for so many operations of an image."""


def _ascending(shares: tuple[float, float]) -> tuple[float, float]:
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
    """Factors in [1 - v, 1 + v]."""
    cutout: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Side of one grey square, as a fraction of the image side."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """A crop of the image's own size from the image with so many black pixels added on every side."""
    resized_crop: AreaShares | None = None
    """Least and largest share of the area that a random crop keeps, resized to the side; aspect ratio 3/4 to 4/3."""
    policy: Literal["autoaugment_cifar10", "autoaugment_imagenet", "randaugment"] | None = None
    """Operations of a published policy, drawn anew for every image."""
    randaugment_operations: Annotated[int, Field(ge=1, le=MOST_RANDAUGMENT_OPERATIONS)] = 2
    randaugment_magnitude: Annotated[int, Field(ge=0, le=30)] = 9
    """randaugment: operations an image gets, and their strength on torchvision's scale of 31."""
    mixup: NonNegative = 0.0
    """alpha of MixUp: an image and another of the batch, blended by Beta(alpha, alpha), and their labels with them."""
    cutmix: NonNegative = 0.0
    """alpha of CutMix: a rectangle of another image of the batch. With both, either is taken with probability 1/2."""
