"""Where a build puts its shards: a folder or a URL, and the working folder in which it grows.

The working folder (`work`) holds `shards/` (all that a folder gets, or the plan and indexes that a URL gets),
`records/` (a record of every finished shard) and a lock. A folder gets its shards in one rename, a URL its index.json
files last.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.shards.build.plan import PLAN_FILE
from moe_dist.data.shards.index import INDEX_FILE, ROWS_FILE, ShardInfo
from moe_dist.data.storage.store import exists, is_url, join, put_file, shown
from moe_dist.data.storage.transfer import protocol
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, whole_file
from moe_dist.settings.data import RemoteConfig

SHARDS = "shards"


@dataclass(frozen=True)
class FolderDestination:
    """A folder, which appears whole."""

    place: str
    remote: RemoteConfig

    @property
    def work(self) -> Path:
        """The working folder: a hidden one beside the folder, on the same disk."""
        out = Path(self.place)
        return out.with_name(f".{out.name}.building")

    def in_use(self) -> bool:
        """Whether the folder holds anything, or is a file."""
        out = Path(self.place)
        return out.exists() and not (out.is_dir() and not any(out.iterdir()))

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path to write to, which is put in place as `name` when the block ends."""
        with whole_file(self.work / SHARDS / name) as partial:
            yield partial

    def holds(self, name: str, shard: ShardInfo) -> bool:
        """Whether the file `name` is in place and has the size and sha256 that `shard` records."""
        path = self.work / SHARDS / name
        return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256

    def publish(self) -> None:
        """Rename the working folder's shards to the folder, without what a killed process left."""
        for partial in (self.work / SHARDS).rglob(".*"):
            partial.unlink()
        os.replace(self.work / SHARDS, self.place)


@dataclass(frozen=True)
class StoreDestination:
    """A URL: shards are put there one by one, the training split's index.json last.

    cache: the folder of this machine in which the working folder lies.
    """

    place: str
    remote: RemoteConfig
    cache: Path

    @property
    def work(self) -> Path:
        """The working folder: one of this machine, named after the URL."""
        return self.cache / "building" / hashlib.sha256(self.place.encode()).hexdigest()[:12]

    def in_use(self) -> bool:
        """Whether whole shards are there."""
        return exists(join(self.place, "train", INDEX_FILE), self.remote)

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A temporary path to write to, whose file is at the URL as `name` when the block ends.

        Raises OSError where the store fails.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            yield path
            with _failures_as_os_errors():
                put_file(path, join(self.place, name), self.remote)

    def holds(self, name: str, shard: ShardInfo) -> bool:
        """Whether the file `name` is at the URL: `shard` was recorded when its upload had ended."""
        with _failures_as_os_errors():
            return exists(join(self.place, name), self.remote)

    def publish(self) -> None:
        """Put the plan and the indexes at the URL. Raises OSError where the store fails."""
        splits = [split for split in reversed(SPLITS) if (self.work / SHARDS / split).is_dir()]
        indexes = [f"{split}/{name}" for split in splits for name in (ROWS_FILE, INDEX_FILE)]
        with _failures_as_os_errors():
            for name in (PLAN_FILE, *indexes):
                put_file(self.work / SHARDS / name, join(self.place, name), self.remote)


Destination = FolderDestination | StoreDestination
"""A folder or URL that shards are built to; picklable, so that any process can put shards there."""


def destination_at(place: str | Path, cache: Path, remote: RemoteConfig) -> Destination:
    """The destination at a folder or URL. Raises UserError for a URL that cannot be written to."""
    if not is_url(place):
        return FolderDestination(str(place), remote)
    if protocol(str(place)) in ("http", "https"):
        raise UserError(f"{shown(place)}: cannot be written over http; name a folder, s3:// or gs://")
    return StoreDestination(str(place), remote, cache)


@contextmanager
def _failures_as_os_errors() -> Iterator[None]:
    """Raise OSError for a store that fails: the source is not at fault, and what is built is kept as on a full disk."""
    try:
        yield
    except UserError as error:
        raise ConnectionError(str(error)) from None
