"""Shards on disk: built from a dataset, opened for random access, checked for damage.

A split is a folder of tars (`train-000000.tar` ...) that plain `tar` and `webdataset.WebDataset` read, with an index
beside them (index.py). A sample is `<key>.<jpg|png|ppm>`, `<key>.cls` and, with a track or region, `<key>.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.catalog import dataset
from moe_dist.data.index import INDEX_VERSION, Index, ShardInfo, read_index, write_index
from moe_dist.data.samples import SPLITS, Contents, Sample
from moe_dist.data.scan import MEMBER_NAME, Scan, image_problem, label_problem, scan_shard
from moe_dist.data.source import fingerprint_parts
from moe_dist.errors import UserError

SAMPLES_PER_SHARD = 4096
OnProgress = Callable[[str, int, int], None]
"""Called with (split, samples done, samples in the split)."""


class ShardSet:
    """One split's samples by number, read from its shards in any order; picklable, its open files left behind.

    class_names [C]; labels, groups, shard_of [N] int64; rois [N, 4] int64 (-1: none); digest: the name of the content.
    """

    def __init__(self, folder: Path, index: Index) -> None:
        self.folder = folder
        self.class_names = index.class_names
        self.digest = index.digest
        self.labels = index.rows["label"].astype(np.int64)
        self.groups = index.rows["group"].astype(np.int64)
        self.rois = index.rows["roi"].astype(np.int64)
        self.shard_of = index.rows["shard"].astype(np.int64)
        self._offsets = index.rows["offset"].copy()
        self._lengths = index.rows["length"].copy()
        self._checksums = index.rows["crc32"].copy()
        self._paths = [folder / shard.name for shard in index.shards]
        self._files: dict[int, FileIO] = {}

    @classmethod
    def open(cls, folder: Path) -> ShardSet:
        """The split in `folder`. Raises UserError where index and shards do not fit together, by their sizes."""
        index = read_index(folder)
        for shard in index.shards:
            path = folder / shard.name
            if not path.is_file():
                raise UserError(f"{path}: the shard is missing; build the shards again")
            if path.stat().st_size != shard.bytes:
                raise UserError(
                    f"{path}: has {path.stat().st_size} bytes, the index says {shard.bytes}; build the shards again"
                )
        outside = np.flatnonzero((index.rows["label"] < 0) | (index.rows["label"] >= len(index.class_names)))
        if outside.size:
            label = int(index.rows["label"][outside[0]])
            raise UserError(f"{folder}: sample {outside[0]}: {label_problem(label, len(index.class_names))}")
        return cls(folder, index)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def read(self, sample: int) -> bytes:
        """The encoded image of `sample`. Raises UserError where it is not the bytes that were indexed."""
        try:
            data = os.pread(self._descriptor(sample), int(self._lengths[sample]), int(self._offsets[sample]))
        except OSError as error:
            raise UserError(f"{self._path(sample)}: cannot be read ({error.strerror})") from None
        if zlib.crc32(data) != self._checksums[sample]:
            raise UserError(f"{self.where(sample)}: changed or cut short since it was indexed; build the shards again")
        return data

    def where(self, sample: int) -> str:
        """The shard and member `sample` lies in, for messages."""
        offset = int(self._offsets[sample])
        header = os.pread(self._descriptor(sample), tarfile.BLOCKSIZE, offset - tarfile.BLOCKSIZE)
        try:
            name = tarfile.TarInfo.frombuf(header, "ascii", "replace").name
        except tarfile.HeaderError:  # type: ignore[attr-defined]
            name = f"byte {offset}"
        return f"{self._path(sample)}: {name}"

    def _path(self, sample: int) -> Path:
        return self._paths[self.shard_of[sample]]

    def _descriptor(self, sample: int) -> int:
        """The shard's open file: readable even when unlinked, and read with pread, as mapping a cut file is fatal."""
        shard = int(self.shard_of[sample])
        if shard not in self._files:
            self._files[shard] = FileIO(self._paths[shard])
        return self._files[shard].fileno()


def source_fingerprint(dataset_name: str, source: Path | None) -> str:
    """A short name for a dataset's source as it is now, from its files' names, sizes and times of change."""
    parts = [] if source is None else fingerprint_parts(source)
    content = json.dumps([INDEX_VERSION, dataset_name, dataset(dataset_name).version(), parts])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def build_shards(
    dataset_name: str,
    source: Path | None,
    out: Path,
    *,
    samples_per_shard: int = SAMPLES_PER_SHARD,
    on_progress: OnProgress | None = None,
) -> None:
    """Write the dataset's splits as shards to out/train and out/test, which appear whole or not at all.

    Equal sources give equal bytes. Raises UserError where the source or one of its samples is bad (its file is named),
    `out` holds something already, or the disk is full.
    """
    contents = dataset(dataset_name).open(source)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: already holds something; name another folder or remove it")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as partial:
            shards = Path(partial) / "shards"
            for split in SPLITS:
                (shards / split).mkdir(parents=True)
                _build_split(dataset_name, contents, split, shards / split, samples_per_shard, on_progress)
            os.replace(shards, out)
    except OSError as error:
        raise UserError(
            f"{out}: cannot build shards: {error}; check the source, the folder and the free space"
        ) from None


def _build_split(
    dataset_name: str,
    contents: Contents,
    split: str,
    folder: Path,
    samples_per_shard: int,
    on_progress: OnProgress | None,
) -> None:
    total, classes = contents.counts[split], len(contents.class_names)
    if not total:
        raise UserError(f"dataset {dataset_name}: split {split} holds no images")
    samples = _checked(contents.read(split), split, classes, total, on_progress)
    shards, rows, kinds = [], [], Counter[str]()
    for number in range(-(-total // samples_per_shard)):
        path = folder / f"{split}-{number:06d}.tar"
        _write_shard(path, islice(samples, samples_per_shard))
        scan = scan_shard(path, number, classes, decode_images=False)
        assert not scan.problems, scan.problems
        shards.append(_shard_info(path, scan))
        rows.append(scan.rows)
        kinds += scan.image_kinds
    write_index(folder, dataset_name, split, contents.class_names, shards, np.concatenate(rows), dict(kinds))


def _checked(
    samples: Iterable[Sample], split: str, classes: int, total: int, on_progress: OnProgress | None
) -> Iterable[Sample]:
    """Pass good samples on; raise UserError, naming its origin, at the first bad one."""
    keys: set[str] = set()
    for done, sample in enumerate(samples, start=1):
        problem = label_problem(sample.label, classes) or image_problem(sample.image, sample.roi)
        if sample.key in keys:
            problem = f"key {sample.key} occurs twice"
        if not MEMBER_NAME.fullmatch(f"{sample.key}.{sample.extension}"):
            problem = f"key {sample.key!r} may hold letters, digits, - and _ alone"
        if problem is not None:
            raise UserError(f"{sample.origin}: {problem}")
        keys.add(sample.key)
        yield sample
        if on_progress is not None:
            on_progress(split, done, total)


def _write_shard(path: Path, samples: Iterable[Sample]) -> None:
    from webdataset.writer import TarWriter  # the package imports without it

    with path.open("wb") as file, TarWriter(file, encoder=False, mtime=0) as writer:
        for sample in samples:
            members = {"__key__": sample.key, sample.extension: sample.image, "cls": str(sample.label).encode()}
            group = {"group": sample.group} if sample.group >= 0 else {}
            region = {"roi": sample.roi} if sample.roi is not None else {}
            if group or region:
                members["json"] = json.dumps({**group, **region}).encode()
            writer.write(members)


def _shard_info(path: Path, scan: Scan) -> ShardInfo:
    return ShardInfo(path.name, len(scan.samples), path.stat().st_size, file_sha256(path))


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
