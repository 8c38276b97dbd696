"""Images that are in two splits of the same shards."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np

from moe_dist.data.image.vectors import VECTOR
from moe_dist.data.shards.index import Index, read_index
from moe_dist.data.shards.inspect.check import split_name, splits_at
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig


def repeated_images(place: str | Path, remote: RemoteConfig = DEFAULT_REMOTE) -> list[str]:
    """A sentence for every two splits at `place` that hold the same images, byte for byte, by length and checksum.

    Vectors are not looked at: some of their datasets have one set for both splits. Raises UserError where an index
    cannot be read.
    """
    indexes = {split_name(split): read_index(split, remote) for split in splits_at(place, remote)}
    images = {split: _images(index) for split, index in indexes.items() if set(index.image_kinds) != {VECTOR}}
    sentences = []
    for one, other in combinations(images, 2):
        if count := int(np.isin(images[other], images[one]).sum()):
            sentences.append(
                f"{count:,} of {len(images[other]):,} {other} images are also {one} images, byte for byte: what is "
                "measured on them is not of unseen images"
            )
    return sentences


def _images(index: Index) -> np.ndarray:
    """A number [N] uint64 for every image of a split: its length and its checksum."""
    return (index.rows["length"].astype(np.uint64) << np.uint64(32)) | index.rows["crc32"].astype(np.uint64)
