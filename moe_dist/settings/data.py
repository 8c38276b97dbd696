"""Settings of a job's images: which they are, where they are, how they are split and when they are decoded."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from moe_dist.paths import from_home, local_path
from moe_dist.settings.schema import AbsolutePath, Count, Part, Positive, Strict

FolderOrUrl = Annotated[
    str, AfterValidator(lambda place: place if "://" in place else str(from_home(local_path(place)).absolute()))
]
"""A folder, made absolute, or a URL (s3://bucket/folder, and any other that fsspec knows)."""


class RemoteConfig(Strict):
    """How shards under a URL are fetched: each as a whole, into a cache on the node's own disk."""

    cache_gib: Positive = 20.0
    """Largest size of the cache; the shards that were opened longest ago are removed first."""
    timeout_seconds: Positive = 60.0
    """Longest silence of the store, when connecting and between two reads, before a try counts as failed."""
    retries: Annotated[int, Field(ge=0)] = 6
    """Further tries of a fetch, each after a pause twice as long as the one before (1 s, 2 s, ... up to 30 s)."""


DEFAULT_REMOTE = RemoteConfig()


class NoiseConfig(Strict):
    """Noise of pixels, which are in [0, 1] and cut to that; the same in all channels."""

    kind: Literal["gaussian", "salt_pepper", "speckle"]
    """gaussian: p + n; speckle: p + p n, n normal; salt_pepper: a pixel becomes black or white, one as likely as the
    other."""
    amount: Annotated[float, Field(gt=0, le=1)]
    """The variance of n; of salt_pepper, the share of the pixels."""


class DataConfig(Strict):
    """A job's images: which they are, where they are, how they are split and when they are decoded.

    A field that only selects images is a part of none: the digests of the selected samples are counted instead.
    """

    dataset: Annotated[str, Part.NONE] = "digits"
    """A name of the catalogue (`moe-dist shards list` shows them)."""
    source: Annotated[AbsolutePath | None, Part.NONE] = None
    """The downloaded dataset: a folder or a tar. Not needed for digits."""
    shards: Annotated[FolderOrUrl | None, Part.NONE] = None
    """Its shards: a folder, where they are built if they are not there yet, or a URL, which must hold them. Default:
    runs/cache/shards/<dataset>-<fingerprint>."""
    use: Literal["split", "test", "all"] = "split"
    """Which images are trained on and tested. split: the training and the test images; test: the test images both
    times; all: all images both times. The last two are for methods that cluster, and are scored on what they clustered.
    """
    noise: NoiseConfig | None = None
    """Noise that every image has, the same whenever it is read: to study what noisy data does to a method."""
    imbalance: Annotated[float | None, Field(ge=1, allow_inf_nan=False), Part.NONE] = None
    """Long-tailed form: class c of C keeps int(n (1 / imbalance)^(c / (C - 1))) training images, n the largest's."""
    imbalance_choice: Annotated[Literal["auto", "first", "random"], Part.NONE] = "auto"
    """Which images a class keeps: its first ones; random ones, drawn with `imbalance_seed`; auto: the first ones where
    the dataset's own order is known to be shuffled (CIFAR's pickles), else random ones."""
    imbalance_seed: Annotated[int, Field(ge=0, lt=2**31), Part.NONE] = 0
    image_size: Annotated[int, Field(ge=8, le=1024)] = 32
    """Side of the square images the networks see, in pixels."""
    crop_roi: bool = False
    """Cut every image to its region of interest before resizing, where the dataset has one."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[Positive, Positive, Positive] = (0.5, 0.5, 0.5)
    """Per RGB channel, of pixels scaled to [0, 1]: networks see (pixel - mean) / std."""
    frame: Literal["stretch", "centre_crop"] = "stretch"
    """How an image becomes a square: stretched; or by its centre, the short side resized to 8/7 of the square's."""
    val_fraction: Annotated[float, Field(ge=0, lt=1), Part.NONE] = 0.1
    """Share of the training images set aside for validation, stratified by class and kept by group (track). A dataset
    with a published validation split uses that and sets none aside. 0: no validation, and the last epoch counts."""
    on_bad_sample: Annotated[Literal["fail", "skip"], Part.NONE] = "fail"
    """An image that cannot be read or decoded ends the run; or it is left out (a black image of weight 0 in training,
    not a part of any accuracy), counted and named in the report. Steps before a training see it black."""
    bad_samples_limit: Annotated[Count, Part.NONE] = 100
    """skip: the run ends where it meets more bad samples than this."""
    max_train_images: Annotated[Count | None, Part.NONE] = None
    """Keep only about this many training images (whole groups, stratified): to try a job out."""
    max_test_images: Annotated[Count | None, Part.NONE] = None
    """The same for the test images, and for a published validation split."""
    decode: Annotated[Literal["auto", "once", "each_time"], Part.NONE] = "auto"
    """When images are decoded: once, into an array that all processes of a node share; each_time they are read; auto:
    once where the array takes at most 2 GiB, else each time."""
    loader_workers: Annotated[Annotated[int, Field(ge=0, le=64)] | None, Part.NONE] = None
    """Processes per rank that load batches ahead: they decode (each_time) and, where a GPU trains, augment. null: four
    for images that are augmented for a GPU, else none."""
    remote: Annotated[RemoteConfig, Part.NONE] = DEFAULT_REMOTE
    window_shards: Annotated[int, Field(ge=0)] = 0
    """each_time: shuffle inside a window of so many shuffled shards (slow storage); 0 shuffles the whole epoch."""
