"""Shards, in a folder or behind a URL, opened for random access.

A split is a folder of tars (`train-000000.tar` ...) that plain `tar` and `webdataset.WebDataset` read, with an index
beside them (index.py). A sample is `<key>.<jpg|png|ppm>`, `<key>.cls` and, with a track or region, `<key>.json`.
Shards behind a URL are read from copies on this node's disk (cache.py).
"""

from __future__ import annotations

import os
import zlib
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.bad_samples import BadSample
from moe_dist.data.shards.cache import ShardCache
from moe_dist.data.shards.files import LocalShards, StoredShards, fetch_index
from moe_dist.data.shards.index import Index, read_index
from moe_dist.data.shards.scan import label_problem
from moe_dist.data.storage.store import is_url, shown
from moe_dist.data.storage.tars import BLOCK, member_name
from moe_dist.errors import UserError
from moe_dist.settings.data import RemoteConfig

_DEFAULTS = RemoteConfig()
_OPEN_FILES = 200
"""Of one set in one process: systems allow 1,024 for everything."""


class ShardSet:
    """One split's samples by number, read from its shards in any order; picklable, its open files left behind.

    dataset, long_tail: what it was built from; class_names [C]; labels, groups, shard_of [N] int64; rois [N, 4] int64
    (-1: none); digest: the name of the content.
    """

    def __init__(self, index: Index, shards: LocalShards | StoredShards) -> None:
        self.dataset = index.dataset
        self.long_tail = index.long_tail
        self.class_names = index.class_names
        self.digest = index.digest
        self.labels = index.rows["label"].astype(np.int64)
        self.groups = index.rows["group"].astype(np.int64)
        self.rois = index.rows["roi"].astype(np.int64)
        self.shard_of = index.rows["shard"].astype(np.int64)
        self._offsets = index.rows["offset"].copy()
        self._lengths = index.rows["length"].copy()
        self._checksums = index.rows["crc32"].copy()
        self._shards = shards
        self._files: dict[int, FileIO] = {}

    @classmethod
    def open(cls, place: Path | str, remote: RemoteConfig = _DEFAULTS, cache: Path | None = None) -> ShardSet:
        """The split in the folder or under the URL `place`.

        remote, cache: for a URL, how shards are fetched, and this node's folder for their copies.
        Raises UserError where the index cannot be had, or index and shards do not fit together: by the sizes of shards
        in a folder; those behind a URL are looked at when they are fetched.
        """
        if is_url(place):
            assert cache is not None
            index = fetch_index(str(place), remote)
            shards: LocalShards | StoredShards = StoredShards(str(place), index.shards, ShardCache(cache, remote))
        else:
            index = read_index(Path(place))
            shards = LocalShards(Path(place), index.shards)
        shards.require_fit()
        outside = np.flatnonzero((index.rows["label"] < 0) | (index.rows["label"] >= len(index.class_names)))
        if outside.size:
            label, where = int(index.rows["label"][outside[0]]), shown(str(place))
            raise UserError(f"{where}: sample {outside[0]}: {label_problem(label, len(index.class_names))}")
        return cls(index, shards)

    def __len__(self) -> int:
        return len(self.labels)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def require_room(self, window_shards: int) -> None:
        """Raise UserError where a window of so many shards (0: all of them) cannot be in the cache at a time."""
        self._shards.require_room(window_shards)

    def read(self, sample: int) -> bytes:
        """The encoded image of `sample`.

        Raises BadSample where it is not the bytes that were indexed, UserError where its shard cannot be fetched.
        """
        data = self._read(sample)
        if zlib.crc32(data) == self._checksums[sample]:
            return data
        shard = int(self.shard_of[sample])
        if self._shards.renew(shard):
            del self._files[shard]
            data = self._read(sample)
            if zlib.crc32(data) == self._checksums[sample]:
                return data
        raise BadSample(f"{self.where(sample)}: changed or cut short since it was indexed; build the shards again")

    def where(self, sample: int) -> str:
        """The shard and member `sample` lies in, for messages."""
        offset = int(self._offsets[sample])
        header = os.pread(self._file(sample).fileno(), BLOCK, offset - BLOCK)
        return f"{self._shards.where(int(self.shard_of[sample]))}: {member_name(header, offset)}"

    def _read(self, sample: int) -> bytes:
        try:
            return os.pread(self._file(sample).fileno(), int(self._lengths[sample]), int(self._offsets[sample]))
        except OSError as error:
            where = f"{self._shards.where(int(self.shard_of[sample]))}: byte {int(self._offsets[sample])}"
            raise BadSample(f"{where}: cannot be read ({error.strerror})") from None

    def _file(self, sample: int) -> FileIO:
        """The sample's open shard: readable even when unlinked, and read with pread, as mapping a cut file is fatal."""
        shard = int(self.shard_of[sample])
        if shard not in self._files:
            file = self._shards.open(shard)
            self._files = self._shards.worth_keeping(self._files)
            if len(self._files) >= _OPEN_FILES:
                del self._files[next(iter(self._files))]
            self._files[shard] = file
        return self._files[shard]
