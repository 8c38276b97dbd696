"""A node's copies of shards that lie in a store: fetched whole, verified, bounded, shared by all its processes.

1. A shard's copy is called by its sha256, so no two shards share a name and the same shard of two sets is one copy.
2. Whoever holds the lock of a shard fetches it and renames it when it is whole; the others wait, and find it. A lock
   goes with its process, so a killed one leaves nothing but a partial file, which the next to need room removes.
3. Room is made before a fetch, under the folder's own lock and counting what others are fetching: the copies opened
   longest ago go first. Only files are removed whose name is a copy's and which have a lock beside them, so a file that
   somebody else put there stays. Whoever has a copy open keeps reading it after it is gone.
"""

from __future__ import annotations

import os
import re
from io import FileIO
from pathlib import Path
from time import sleep

from moe_dist.data.shards.index import ShardInfo
from moe_dist.data.storage.locks import is_locked, locked
from moe_dist.data.storage.store import get_file
from moe_dist.errors import UserError
from moe_dist.settings.data import RemoteConfig

_COPY = re.compile(r"([0-9a-f]{64})\.tar")
_PARTIAL = re.compile(r"([0-9a-f]{64})-(\d+)\.part")
_ROOM_LOCK = "room.lock"
_WAIT_SECONDS = 0.1
_GIB = 2**30


class ShardCache:
    """The copies in `folder`, as many as `remote.cache_gib` allows; picklable."""

    def __init__(self, folder: Path, remote: RemoteConfig) -> None:
        self.folder = folder
        self.remote = remote
        self.limit_bytes = int(remote.cache_gib * _GIB)

    def require_room(self, shard: ShardInfo, where: str) -> None:
        """Raise UserError where `shard` alone is larger than the cache."""
        if shard.bytes > self.limit_bytes:
            raise UserError(
                f"{where}: has {shard.bytes / _GIB:.2g} GiB, more than data.remote.cache_gib = "
                f"{self.remote.cache_gib:g}; raise it, or build smaller shards"
            )

    def open(self, shard: ShardInfo, url: str) -> FileIO:
        """The copy of `shard`, fetched from `url` if there is none; it stays readable when it is removed to make room.

        Raises UserError where it cannot be fetched, or the disk does not take it.
        """
        try:
            copy = self._opened(shard)
            if copy is not None:
                return copy
            with locked(self._lock(shard.sha256)):
                return self._opened(shard) or self._fetched(shard, url)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot keep a copy of {shard.name} ({error.strerror}); free space, or name another "
                "folder in MOE_DIST_CACHE"
            ) from None

    def drop(self, shard: ShardInfo) -> None:
        """Forget the copy of `shard`: the next to open it fetches it anew."""
        with locked(self.folder / _ROOM_LOCK):
            self._copy(shard).unlink(missing_ok=True)

    def _copy(self, shard: ShardInfo) -> Path:
        return self.folder / f"{shard.sha256}.tar"

    def _lock(self, sha256: str) -> Path:
        return self.folder / f"{sha256}.lock"

    def _opened(self, shard: ShardInfo) -> FileIO | None:
        """The copy of `shard`, marked as used now; None where there is none of its size."""
        try:
            copy = FileIO(self._copy(shard))
        except FileNotFoundError:
            return None
        if os.fstat(copy.fileno()).st_size != shard.bytes:
            return None
        os.utime(copy.fileno())
        return copy

    def _fetched(self, shard: ShardInfo, url: str) -> FileIO:
        assert shard.bytes <= self.limit_bytes, "require_room comes first"
        partial = self.folder / f"{shard.sha256}-{shard.bytes}.part"
        partial.unlink(missing_ok=True)  # of a killed process: this one holds the lock now
        while not self._reserve(partial, shard.bytes):
            sleep(_WAIT_SECONDS)  # for other fetches to end: each has its limits, so they do
        try:
            get_file(url, partial, self.remote, shard.sha256)
            copy = FileIO(partial)  # opened first: once it has its name it may be removed for another's sake
            partial.replace(self._copy(shard))
            return copy
        finally:
            partial.unlink(missing_ok=True)

    def _reserve(self, partial: Path, size: int) -> bool:
        """Make room for `size` bytes and create `partial`, whose name reserves them; False while others need it."""
        with locked(self.folder / _ROOM_LOCK):
            room = self.limit_bytes - self._being_fetched()
            if size > room:
                return False
            copies = sorted(self._copies(), key=lambda copy: copy[1].st_mtime_ns)
            held = sum(stat.st_size for _, stat in copies)
            for path, stat in copies:
                if held + size <= room:
                    break
                path.unlink(missing_ok=True)
                held -= stat.st_size
            partial.touch()
            return True

    def _copies(self) -> list[tuple[Path, os.stat_result]]:
        """The copies that were put here by a cache, which a lock beside them shows."""
        found = []
        for path in self.folder.iterdir():
            name = _COPY.fullmatch(path.name)
            if name and self._lock(name[1]).exists():
                found.append((path, path.stat()))
        return found

    def _being_fetched(self) -> int:
        """The bytes that partial files will have; those of processes that are no more are removed."""
        size = 0
        for path in self.folder.iterdir():
            name = _PARTIAL.fullmatch(path.name)
            if name is None:
                continue
            if is_locked(self._lock(name[1])):
                size += int(name[2])
            else:
                path.unlink(missing_ok=True)
        return size
