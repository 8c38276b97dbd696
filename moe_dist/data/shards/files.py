"""Where the shards of a split are read from: a folder, or copies of what lies under a URL."""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import FileIO
from itertools import accumulate
from pathlib import Path

from moe_dist.data.shards.cache import ShardCache
from moe_dist.data.shards.index import INDEX_FILE, ROWS_FILE, Index, ShardInfo, parse_index
from moe_dist.data.storage.store import get_bytes, join, shown
from moe_dist.errors import UserError
from moe_dist.settings.data import RemoteConfig


def fetch_index(url: str, remote: RemoteConfig) -> Index:
    """The index under `url`, as it is there now. Raises UserError where it cannot be had or does not fit together."""
    content, rows = (get_bytes(join(url, name), remote) for name in (INDEX_FILE, ROWS_FILE))
    return parse_index(shown(url), content, rows)


@dataclass(frozen=True)
class LocalShards:
    """The shards `infos` in `folder`."""

    folder: Path
    infos: tuple[ShardInfo, ...]

    def require_fit(self) -> None:
        """Raise UserError where a shard is missing or has another size than the index says."""
        for shard in self.infos:
            path = self.folder / shard.name
            if not path.is_file():
                raise UserError(f"{path}: the shard is missing; build the shards again")
            if path.stat().st_size != shard.bytes:
                raise UserError(
                    f"{path}: has {path.stat().st_size} bytes, the index says {shard.bytes}; build the shards again"
                )

    def where(self, shard: int) -> str:
        """The path of the `shard`-th."""
        return str(self.folder / self.infos[shard].name)

    def open(self, shard: int) -> FileIO:
        """The `shard`-th, for reading. Raises OSError."""
        return FileIO(self.folder / self.infos[shard].name)

    def require_room(self, window_shards: int) -> None:
        """A folder holds all its shards."""

    def renew(self, shard: int) -> bool:
        """Whether there is another copy of the `shard`-th to read: there is none."""
        return False

    def worth_keeping(self, files: dict[int, FileIO]) -> dict[int, FileIO]:
        """The open `files` to keep open: all."""
        return files


@dataclass(frozen=True)
class StoredShards:
    """The shards `infos` under the URL `place`, through `cache`."""

    place: str
    infos: tuple[ShardInfo, ...]
    cache: ShardCache

    def require_fit(self) -> None:
        """Raise UserError where a shard is larger than the cache."""
        for number, shard in enumerate(self.infos):
            self.cache.require_room(shard, self.where(number))

    def where(self, shard: int) -> str:
        """The URL of the `shard`-th, for messages."""
        return shown(join(self.place, self.infos[shard].name))

    def open(self, shard: int) -> FileIO:
        """The copy of the `shard`-th, fetched if there is none. Raises UserError."""
        return self.cache.open(self.infos[shard], join(self.place, self.infos[shard].name))

    def require_room(self, window_shards: int) -> None:
        """Raise UserError where a window of so many shards (0: all) is larger than the cache: each read would fetch."""
        sizes = sorted((shard.bytes for shard in self.infos), reverse=True)
        largest = sum(sizes[: window_shards or None])
        if largest > self.cache.limit_bytes:
            fitting = sum(total <= self.cache.limit_bytes for total in accumulate(sizes))
            raise UserError(
                f"{shown(self.place)}: an epoch reads {largest / 2**30:.2g} GiB of shards at a time; raise "
                f"data.remote.cache_gib (it is {self.cache.remote.cache_gib:g}), or set data.window_shards={fitting} "
                "(where no stage samples by class)"
            )

    def renew(self, shard: int) -> bool:
        """Forget the copy of the `shard`-th: it was good when it came, so this node's disk is at fault."""
        self.cache.drop(self.infos[shard])
        return True

    def worth_keeping(self, files: dict[int, FileIO]) -> dict[int, FileIO]:
        """The open `files` to keep open: a copy that was removed to make room goes when nobody has it open any more."""
        return {shard: file for shard, file in files.items() if os.fstat(file.fileno()).st_nlink}
