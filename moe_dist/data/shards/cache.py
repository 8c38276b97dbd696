"""A node's copies of shards that lie in a store: fetched whole, verified, bounded, shared by all its processes.

1. A copy is named after the shard's sha256: no two shards share a name, and a shard of two sets has one copy.
2. The process that holds a shard's lock fetches it and renames it when it is whole; the others wait and find it. A
   killed process loses its lock and leaves a partial file, which the next process that needs room removes.
3. Room is made before a fetch, under the folder's own lock and counting what others are fetching: the copies that were
   opened longest ago are removed first. Only a file that has the name of a copy and a lock beside it is removed, so
   files of somebody else stay. A process that has a copy open can read it after its removal.
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
    """The copies in `folder`, at most `remote.cache_gib` of them; it can be pickled."""

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
        """The copy of `shard`, fetched from `url` where there is none; it stays readable when it is removed.

        Raises UserError where it cannot be fetched, or the disk does not take it.
        """
        try:
            copy = self._opened(shard)
            if copy is not None:
                return copy
            with locked(self.folder / f"{shard.sha256}.lock"):
                return self._opened(shard) or self._fetched(shard, url)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot keep a copy of {shard.name} ({error.strerror}); free space, or name another "
                "folder in MOE_DIST_CACHE"
            ) from None

    def drop(self, shard: ShardInfo) -> None:
        """Remove the copy of `shard`: the next process to open it fetches it anew."""
        with locked(self.folder / _ROOM_LOCK):
            (self.folder / f"{shard.sha256}.tar").unlink(missing_ok=True)

    def _opened(self, shard: ShardInfo) -> FileIO | None:
        """The copy of `shard`, marked as used now; None where there is none of its size."""
        try:
            copy = FileIO(self.folder / f"{shard.sha256}.tar")
        except FileNotFoundError:
            return None
        if os.fstat(copy.fileno()).st_size != shard.bytes:
            return None
        os.utime(copy.fileno())
        return copy

    def _fetched(self, shard: ShardInfo, url: str) -> FileIO:
        """A new copy of `shard`, whose lock the caller holds; waits until there is room for it."""
        assert shard.bytes <= self.limit_bytes, "require_room comes first"
        partial = self.folder / f"{shard.sha256}-{shard.bytes}.part"
        partial.unlink(missing_ok=True)  # of a killed process: this one holds the lock now
        while not self._reserve(partial, shard.bytes):
            sleep(_WAIT_SECONDS)  # for other fetches to end: each has its limits, so they do
        try:
            get_file(url, partial, self.remote, shard.sha256)
            copy = FileIO(partial)  # opened first: once it has its name it may be removed to make room
            partial.replace(self.folder / f"{shard.sha256}.tar")
            return copy
        finally:
            partial.unlink(missing_ok=True)

    def _reserve(self, partial: Path, size: int) -> bool:
        """Make room for `size` bytes and create `partial`, whose name reserves them.

        Returns False where other fetches need the room now.
        """
        with locked(self.folder / _ROOM_LOCK):
            room = self.limit_bytes - self._being_fetched()
            if size > room:
                return False
            copies = [(path, path.stat()) for path in self.folder.iterdir() if self._is_copy(path)]
            held = sum(stat.st_size for _, stat in copies)
            for path, stat in sorted(copies, key=lambda copy: copy[1].st_mtime_ns):
                if held + size <= room:
                    break
                path.unlink(missing_ok=True)
                held -= stat.st_size
            partial.touch()
            return True

    def _is_copy(self, path: Path) -> bool:
        """Whether a cache put the file `path` here, which the lock beside it shows."""
        name = _COPY.fullmatch(path.name)
        return name is not None and (self.folder / f"{name[1]}.lock").exists()

    def _being_fetched(self) -> int:
        """The bytes that all partial files will have; those of killed processes are removed."""
        size = 0
        for path in self.folder.iterdir():
            name = _PARTIAL.fullmatch(path.name)
            if name is None:
                continue
            if is_locked(self.folder / f"{name[1]}.lock"):
                size += int(name[2])
            else:
                path.unlink(missing_ok=True)
        return size
