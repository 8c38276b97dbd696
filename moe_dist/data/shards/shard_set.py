"""The shards of one split, in a folder or behind a URL, opened for random access.

A split is a folder of tars (`train-000000.tar` ...) that plain `tar` and `webdataset.WebDataset` read, with an index
beside them (index.py). A sample is `<key>.<jpg|png|ppm>`, `<key>.cls` and, with a track or region, `<key>.json`.
Shards behind a URL are read from copies on this node's disk (cache.py).
"""

from __future__ import annotations

import os
import zlib
from io import FileIO
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.bad_samples import BadSample
from moe_dist.data.image.vectors import VECTOR
from moe_dist.data.longtail import UNLABELLED
from moe_dist.data.shards.cache import ShardCache
from moe_dist.data.shards.index import Index, read_index
from moe_dist.data.shards.scan import image_names, label_problem
from moe_dist.data.storage.store import exists, is_url, join, shown
from moe_dist.data.storage.tars import BLOCK, member_name
from moe_dist.errors import UserError
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig

_OPEN_FILES = 200
"""Shards that one set keeps open in one process: systems allow 1,024 files in all."""


class ShardSet:
    """One split's samples by number, read from its shards in any order. A pickled set leaves its open files behind.

    dataset, long_tail, shuffled: what it was built from (index.py); class_names [C]; superclasses [C], or None;
    holds_vectors: whether samples are vectors, not images; labels, groups, shard_of [N] int64; rois [N, 4] int64 (-1:
    none); digest: the name of the content.
    """

    def __init__(self, place: str, index: Index, cache: ShardCache | None) -> None:
        self.dataset = index.dataset
        self.long_tail = index.long_tail
        self.shuffled = index.shuffled
        self.class_names = index.class_names
        self.superclasses = index.superclasses
        self.holds_vectors = set(index.image_kinds) == {VECTOR}
        self.digest = index.digest
        self.labels = index.rows["label"].astype(np.int64)
        self.groups = index.rows["group"].astype(np.int64)
        self.rois = index.rows["roi"].astype(np.int64)
        self.shard_of = index.rows["shard"].astype(np.int64)
        self._offsets = index.rows["offset"].copy()
        self._lengths = index.rows["length"].copy()
        self._checksums = index.rows["crc32"].copy()
        self._shards = index.shards
        self._places = [join(place, shard.name) for shard in index.shards]
        self._place = place
        self._cache = cache
        self._files: dict[int, FileIO] = {}

    @classmethod
    def open(cls, place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE, cache: Path | None = None) -> ShardSet:
        """The split in the folder or under the URL `place`.

        remote, cache: for a URL, how shards are fetched, and this node's folder for their copies.
        Raises UserError where the index cannot be read, or index and shards do not fit together: in a folder every
        shard has the size that the index says; a shard behind a URL is looked at when it is fetched, and fits into the
        cache.
        """
        index = read_index(place, remote)
        copies = None
        if is_url(place):
            assert cache is not None
            copies = ShardCache(cache, remote)
            for shard in index.shards:
                copies.require_room(shard, shown(join(place, shard.name)))
        else:
            _require_sizes(Path(place), index)
        outside = np.flatnonzero((index.rows["label"] < UNLABELLED) | (index.rows["label"] >= len(index.class_names)))
        if outside.size:
            problem = label_problem(int(index.rows["label"][outside[0]]), len(index.class_names))
            raise UserError(f"{shown(place)}: sample {outside[0]}: {problem}")
        return cls(str(place), index, copies)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def require_room(self, window_shards: int) -> None:
        """Raise UserError where a window of so many shards (0: all of them) is larger than the cache.

        Every read would fetch a shard then. A folder needs no cache.
        """
        if self._cache is None:
            return
        sizes = sorted((shard.bytes for shard in self._shards), reverse=True)
        largest = sum(sizes[: window_shards or None])
        if largest > self._cache.limit_bytes:
            fitting = sum(total <= self._cache.limit_bytes for total in accumulate(sizes))
            raise UserError(
                f"{shown(self._place)}: an epoch reads {largest / 2**30:.2g} GiB of shards at a time; raise "
                f"data.remote.cache_gib (it is {self._cache.remote.cache_gib:g}), or set data.window_shards={fitting} "
                "(where no stage samples by class)"
            )

    def read(self, sample: int) -> bytes:
        """The encoded image of `sample`.

        Raises BadSample where it is not the bytes that were indexed, UserError where its shard cannot be fetched.
        """
        data = self._read(sample)
        if zlib.crc32(data) == self._checksums[sample]:
            return data
        if self._cache is not None:  # its copy was good when it came, so this node's disk is at fault
            shard = int(self.shard_of[sample])
            self._cache.drop(self._shards[shard])
            del self._files[shard]
            data = self._read(sample)
            if zlib.crc32(data) == self._checksums[sample]:
                return data
        raise BadSample(f"{self.where(sample)}: changed or cut short since it was indexed; build the shards again")

    def names(self) -> list[str]:
        """What users call the samples [N]: their paths in an image folder, else their keys. Every shard is read.

        Raises UserError where one is damaged.
        """
        by_shard = {shard: self._names_in(shard) for shard in np.unique(self.shard_of).tolist()}
        return [by_shard[shard][offset] for shard, offset in zip(self.shard_of.tolist(), self._offsets.tolist())]

    def where(self, sample: int) -> str:
        """The shard and the member in which `sample` lies, for messages."""
        shard, offset = int(self.shard_of[sample]), int(self._offsets[sample])
        header = os.pread(self._file(shard).fileno(), BLOCK, offset - BLOCK)
        return f"{shown(self._places[shard])}: {member_name(header, offset)}"

    def _names_in(self, shard: int) -> dict[int, str]:
        try:
            return image_names(Path(str(self._file(shard).name)))
        except ValueError as error:
            raise UserError(f"{shown(self._places[shard])}: {error}; build the shards again") from None

    def _read(self, sample: int) -> bytes:
        """The bytes at the sample's place. They are read with pread: a mapped file that is cut short is fatal."""
        shard, offset = int(self.shard_of[sample]), int(self._offsets[sample])
        try:
            return os.pread(self._file(shard).fileno(), int(self._lengths[sample]), offset)
        except OSError as error:
            where = f"{shown(self._places[shard])}: byte {offset}"
            raise BadSample(f"{where}: cannot be read ({error.strerror})") from None

    def _file(self, shard: int) -> FileIO:
        """The `shard`-th shard, open. It stays readable when its file is removed."""
        if shard not in self._files:
            if self._cache is None:
                file = FileIO(self._places[shard])
            else:
                file = self._cache.open(self._shards[shard], self._places[shard])
                # Copies that made room for it keep their bytes of the disk as long as somebody has them open.
                self._files = {number: copy for number, copy in self._files.items() if os.fstat(copy.fileno()).st_nlink}
            if len(self._files) >= _OPEN_FILES:
                del self._files[next(iter(self._files))]
            self._files[shard] = file
        return self._files[shard]


def _require_sizes(folder: Path, index: Index) -> None:
    """Raise UserError where a shard is missing from `folder` or has another size than the index says."""
    for shard in index.shards:
        path = folder / shard.name
        if not exists(path):
            raise UserError(f"{path}: the shard is missing; build the shards again")
        if path.stat().st_size != shard.bytes:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, the index says {shard.bytes}; build the shards again"
            )
