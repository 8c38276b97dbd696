"""Writing one shard: its samples are checked, made smaller where asked, and packed into a tar."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from moe_dist.data.datasets.samples import Contents, Sample
from moe_dist.data.image.decode import decode
from moe_dist.data.order import epoch_order
from moe_dist.data.shards.build.destination import Destination
from moe_dist.data.shards.build.plan import Plan
from moe_dist.data.shards.index import ShardInfo
from moe_dist.data.shards.scan import MEMBER_NAME, label_problem, region_problem, scan_shard
from moe_dist.data.shards.shrink import Shrink, shrunk
from moe_dist.errors import UserError
from moe_dist.files import file_sha256

NAMED_SAMPLES = 20
"""Bad samples that a message names, at most; the rest is counted."""
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
    """Writes any shard of a dataset, each on its own: it is sent to a process once and then given numbers."""

    contents: Contents
    plan: Plan
    destination: Destination

    def shards(self, split: str) -> int:
        """How many shards `split` has."""
        return -(-self.contents.counts[split] // self.plan.samples_per_shard)

    def name(self, split: str, shard: int) -> str:
        """The file name of the `shard`-th shard of `split`."""
        return f"{split}-{shard:06d}.tar"

    def numbers(self, split: str, shard: int) -> np.ndarray:
        """The dataset's own numbers [n] of a shard's samples, mixed so that every shard holds all classes."""
        size = self.plan.samples_per_shard
        return _mixed(self.contents.counts[split])[shard * size : (shard + 1) * size]

    def write(self, split: str, shard: int, on_samples: OnSamples = lambda samples: None) -> WrittenShard:
        """Write one shard and put it in place; equal plans and sources give equal bytes.

        Raises UserError where the source or samples are bad (their files are named), OSError where disk or store are.
        """
        name, classes = self.name(split, shard), len(self.contents.class_names)
        with self.destination.new_file(f"{split}/{name}") as path:
            _write_tar(path, self._samples(split, shard, on_samples))
            scan = scan_shard(path, shard, classes, decode_images=False)
            assert not scan.problems, scan.problems
            info = ShardInfo(name, len(scan.keys), path.stat().st_size, file_sha256(path))
        return WrittenShard(info, scan.rows, scan.keys, dict(scan.image_kinds))

    def _samples(self, split: str, shard: int, on_samples: OnSamples) -> Iterator[Sample]:
        """The shard's samples as they are stored. Raises one UserError for all of them that are bad, after the last."""
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
            raise UserError(_named(problems))


def _named(problems: list[str]) -> str:
    further = f"; and {len(problems) - NAMED_SAMPLES} more" if len(problems) > NAMED_SAMPLES else ""
    return "; ".join(problems[:NAMED_SAMPLES]) + further


@lru_cache(maxsize=4)
def _mixed(samples_count: int) -> np.ndarray:
    return epoch_order(samples_count, seed=0, epoch=0)


def _prepared(sample: Sample, classes: int, shrink: Shrink | None) -> Sample:
    """`sample` as it is stored. Raises UserError, naming its origin, where anything about it is bad."""
    problem = label_problem(sample.label, classes)
    if not MEMBER_NAME.fullmatch(f"{sample.key}.{sample.extension}"):
        problem = f"key {sample.key!r} may hold letters, digits, - and _ alone"
    try:
        pixels = decode(sample.image)
    except ValueError as error:
        raise UserError(f"{sample.origin}: {error}") from None
    problem = problem or region_problem(sample.roi, pixels)
    if problem is not None:
        raise UserError(f"{sample.origin}: {problem}")
    return sample if shrink is None else shrunk(sample, pixels, shrink)


def _write_tar(path: Path, samples: Iterator[Sample]) -> None:
    from webdataset.writer import TarWriter  # the package imports without it

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in samples:
            members = {"__key__": sample.key, sample.extension: sample.image, "cls": str(sample.label).encode()}
            group = {"group": sample.group} if sample.group >= 0 else {}
            region = {"roi": sample.roi} if sample.roi is not None else {}
            if group or region:
                members["json"] = json.dumps({**group, **region}).encode()
            writer.write(members)
