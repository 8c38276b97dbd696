"""Keeps a few training images in the run directory, small, so that a report shows what the data looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from moe_dist.data.longtail import largest_first, spaced
from moe_dist.data.opened.opened import OpenedData
from moe_dist.data.storage.store import is_url
from moe_dist.files import whole_file
from moe_dist.places import SAMPLE_IMAGES

CLASSES, OF_A_CLASS = 12, 6
LARGEST_SIDE = 64


def keep_sample_images(data: OpenedData, run: Path) -> None:
    """Write sample_images.npz: images [V, 3, S, S] uint8 and labels [V], by class, of classes equally spaced by size.

    Nothing is written for vectors, nor for shards behind a URL, of which every image might be fetched with its shard.
    """
    if data.info.vector_size or is_url(data.shards):
        return
    labels = data.train.labels[data.train_samples]
    shown = spaced(largest_first(np.asarray(data.info.class_counts)), CLASSES)
    chosen = np.concatenate([data.train_samples[labels == label][:OF_A_CLASS] for label in shown])
    images = data.train.images.uint8(chosen)
    readable = data.train.images.readable(chosen)
    kept = images.numpy()[readable]
    if kept.size:
        arrays = {"images": np.stack(list(map(_small, kept))), "labels": data.train.labels[chosen[readable]]}
        with whole_file(run / SAMPLE_IMAGES, lasting=False) as partial, partial.open("wb") as file:
            np.savez_compressed(file, **arrays)


def _small(image: np.ndarray) -> np.ndarray:
    """The image [3, S, S] with a side of at most LARGEST_SIDE pixels."""
    if image.shape[-1] <= LARGEST_SIDE:
        return image
    small = Image.fromarray(image.transpose(1, 2, 0)).resize((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.BOX)
    return np.asarray(small).transpose(2, 0, 1)
