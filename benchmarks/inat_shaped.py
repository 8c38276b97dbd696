"""A data set shaped like iNaturalist 2018's training part: 8,142 classes, 437,513 images, 2 to 1,000 of a class.

The images are four pictures of 8 x 8 pixels, the labels and the sizes of everything else are real in number.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from moe_dist.data.shards.index import Index, ShardInfo, write_index
from moe_dist.data.shards.scan import scan_shard
from moe_dist.files import file_sha256

CLASSES, IMAGES = 8142, 437_513
SMALLEST, LARGEST = 2, 1000
SAMPLES_PER_SHARD = 4096
_BLOCK = 512


def pareto_counts(classes: int, images: int) -> np.ndarray:
    """Images [classes] of each class, largest first: quantiles of the Pareto distribution bounded to 2 .. 1,000 images
    whose exponent gives `images` in all."""
    middle = (np.arange(classes) + 0.5) / classes

    def quantiles(exponent: float) -> np.ndarray:
        low, high = SMALLEST**-exponent, LARGEST**-exponent
        return (high + middle * (low - high)) ** (-1 / exponent)

    light, heavy = 0.01, 3.0  # the heavier the exponent, the fewer images
    for _ in range(60):
        exponent = (light + heavy) / 2
        light, heavy = (exponent, heavy) if quantiles(exponent).sum() > images else (light, exponent)
    counts = np.rint(quantiles(light)).astype(np.int64)
    counts[[0, -1]] = LARGEST, SMALLEST
    missing = images - int(counts.sum())
    counts[1 : 1 + abs(missing)] += np.sign(missing)
    return counts


def write_inat_shaped(folder: Path, counts: np.ndarray) -> None:
    """Write the split `folder`: shards of a mixed order, indexed by reading them back."""
    folder.mkdir(parents=True)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    pictures = [_picture(shade) for shade in range(4)]
    shards, rows = [], []
    for number, start in enumerate(range(0, len(labels), SAMPLES_PER_SHARD)):
        path = folder / f"train-{number:06d}.tar"
        _write_shard(path, start, labels[start : start + SAMPLES_PER_SHARD].tolist(), pictures)
        scan = scan_shard(path, number, len(counts), decode_images=False)
        assert not scan.problems, scan.problems
        shards.append(ShardInfo(path.name, len(scan.keys), path.stat().st_size, file_sha256(path)))
        rows.append(scan.rows)
    names = tuple(f"species-{label:04d}" for label in range(len(counts)))
    index = Index("inat_shaped", "train", names, tuple(shards), np.concatenate(rows), {"png": len(labels)})
    write_index(folder, index)


def _picture(shade: int) -> bytes:
    encoded = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 60 * shade, np.uint8)).save(encoded, "PNG")
    return encoded.getvalue()


def _write_shard(path: Path, first: int, labels: list[int], pictures: list[bytes]) -> None:
    with path.open("wb") as file:
        for number, label in enumerate(labels, start=first):
            file.write(_member(f"{number:06d}.png", pictures[number % len(pictures)]))
            file.write(_member(f"{number:06d}.cls", str(label).encode()))
        file.write(bytes(2 * _BLOCK))


def _member(name: str, data: bytes) -> bytes:
    """A file in a ustar archive: tarfile takes ten times as long, and there are 875,026 of them."""
    fields = (
        name.encode().ljust(100, b"\0"),
        b"0000644\0",
        b"0000000\0" * 2,
        b"%011o\0" % len(data),
        b"0" * 11 + b"\0",
    )
    before, after = b"".join(fields), b"0" + bytes(100) + b"ustar\x0000"
    checksum = sum(before) + sum(after) + 8 * ord(" ")
    header = before + b"%06o\0 " % checksum + after
    return header.ljust(_BLOCK, b"\0") + data + bytes(-len(data) % _BLOCK)
