"""Writing one shard: its samples are checked, made smaller where asked, and packed into a tar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from moe_dist.data.datasets.samples import Contents, Sample, scaled_region
from moe_dist.data.image.decode import decode
from moe_dist.data.image.vectors import VECTOR
from moe_dist.data.longtail import UNLABELLED
from moe_dist.data.order import epoch_order
from moe_dist.data.shards.build.destination import Destination
from moe_dist.data.shards.build.plan import Plan
from moe_dist.data.shards.index import ShardInfo, Shrink
from moe_dist.data.shards.scan import MEMBER_NAME, image_problem, label_problem, region_problem, scan_shard
from moe_dist.errors import UserError
from moe_dist.files import file_sha256

NAMED_SAMPLES = 20
"""Most bad samples that a message names; the others are counted."""
OnSamples = Callable[[int], None]
"""Called with the number of samples that were written since the last call."""


@dataclass(frozen=True)
class WrittenShard:
    """A shard that is in place: its entry of the index, its rows [n] of ROW, keys [n], and images by extension."""

    info: ShardInfo
    rows: np.ndarray
    keys: list[str]
    image_kinds: Mapping[str, int]


@dataclass(frozen=True)
class ShardWriter:
    """Writes the shards of a dataset, each on its own; it can be sent to another process, which then writes some."""

    contents: Contents
    plan: Plan
    destination: Destination

    def shards(self, split: str) -> int:
        """The number of shards of `split`."""
        return -(-self.contents.counts[split] // self.plan.samples_per_shard)

    def name(self, split: str, shard: int) -> str:
        """The file name of the `shard`-th shard of `split`."""
        return f"{split}-{shard:06d}.tar"

    def numbers(self, split: str, shard: int) -> np.ndarray:
        """The dataset's own numbers [n] of a shard's samples, shuffled so that every shard holds all classes."""
        size = self.plan.samples_per_shard
        return _shuffled(self.contents.counts[split])[shard * size : (shard + 1) * size]

    def write(self, split: str, shard: int, on_samples: OnSamples = lambda samples: None) -> WrittenShard:
        """Write one shard and put it in place; equal plans and sources give equal bytes.

        Raises UserError, naming the files, where the source or samples are bad, and OSError where disk or store fail.
        """
        name, classes = self.name(split, shard), len(self.contents.class_names)
        with self.destination.new_file(f"{split}/{name}") as path:
            _write_tar(path, self._samples(split, shard, on_samples))
            scan = scan_shard(path, shard, classes, decode_images=False)
            assert not scan.problems, scan.problems
            info = ShardInfo(name, len(scan.keys), path.stat().st_size, file_sha256(path))
        return WrittenShard(info, scan.rows, scan.keys, dict(scan.image_kinds))

    def _samples(self, split: str, shard: int, on_samples: OnSamples) -> Iterator[Sample]:
        """The shard's samples as they are stored. Raises, after the last, one UserError for all that are bad."""
        classes = len(self.contents.class_names)
        keys: set[str] = set()
        problems: list[str] = []
        for number in self.numbers(split, shard).tolist():
            try:
                sample = self.contents.sample(split, number)
                if sample.key in keys:
                    raise UserError(f"{sample.origin}: key {sample.key} occurs twice")
                keys.add(sample.key)
                prepared = _prepared(sample, classes, self.plan.shrink)
            except UserError as error:
                problems.append(str(error))
                continue
            yield prepared
            on_samples(1)
        if problems:
            further = len(problems) - NAMED_SAMPLES
            raise UserError("; ".join(problems[:NAMED_SAMPLES]) + (f"; and {further} more" if further > 0 else ""))


@lru_cache(maxsize=4)
def _shuffled(samples_count: int) -> np.ndarray:
    """The order in which a split's samples go to its shards."""
    return epoch_order(samples_count, seed=0, epoch=0)


def _prepared(sample: Sample, classes: int, shrink: Shrink | None) -> Sample:
    """`sample` as it is stored. Raises UserError, naming its origin, where it cannot be used."""
    problem = label_problem(sample.label, classes, unlabelled=True)
    if not MEMBER_NAME.fullmatch(f"{sample.key}.{sample.extension}"):
        problem = f"key {sample.key!r} may hold only letters, digits, - and _"
    if sample.extension == VECTOR:
        problem, pixels = problem or image_problem(sample.image), None
    else:
        try:
            pixels = decode(sample.image)
        except ValueError as error:
            raise UserError(f"{sample.origin}: {error}") from None
        problem = problem or region_problem(sample.roi, pixels)
    if problem is not None:
        raise UserError(f"{sample.origin}: {problem}")
    return sample if shrink is None or pixels is None else shrunk(sample, pixels, shrink)


def shrunk(sample: Sample, pixels: np.ndarray, shrink: Shrink) -> Sample:
    """`sample`, whose image is `pixels` [H, W, 3], made smaller; the same, byte for byte, where it is small enough.

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


def _write_tar(path: Path, samples: Iterator[Sample]) -> None:
    """Write the samples to a tar as WebDataset lays them out."""
    from webdataset.writer import TarWriter  # the package imports without it

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in samples:
            members = {"__key__": sample.key, sample.extension: sample.image, "cls": str(sample.label).encode()}
            group = {"group": sample.group} if sample.group >= 0 else {}
            region = {"roi": sample.roi} if sample.roi is not None else {}
            name = {"name": sample.name} if sample.name else {}
            unlabelled = {"unlabelled": True} if sample.label == UNLABELLED else {}
            if extra := {**group, **region, **name, **unlabelled}:
                members["json"] = json.dumps(extra).encode()
            writer.write(members)
