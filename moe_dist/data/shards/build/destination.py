"""Where a build puts its shards: a folder or a URL, and the working folder in which it grows.

The working folder (`work`) holds `shards/` (what the destination gets, or its indexes alone), `records/` (what is known
of every finished shard) and a lock. A folder gets its shards in one rename; a URL its index.json files last.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.shards.build.plan import PLAN_FILE
from moe_dist.data.shards.files import fetch_index
from moe_dist.data.shards.index import INDEX_FILE, ROWS_FILE, Index, ShardInfo, read_index
from moe_dist.data.storage.store import exists, get_bytes, is_url, join, put_file
from moe_dist.data.storage.transfer import protocol, shown
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, whole_file
from moe_dist.settings.data import RemoteConfig


class Destination(Protocol):
    """A folder or URL that shards are built to; picklable, so that any process can put shards there."""

    @property
    def place(self) -> str:
        """The folder or URL, for messages."""

    @property
    def work(self) -> Path:
        """The working folder, on this machine."""

    def in_use(self) -> bool:
        """Whether something is there already."""

    def plan(self) -> str | None:
        """The text of the plan that the whole shards there were built from; None where there are none."""

    def indexes(self) -> dict[str, Index]:
        """The splits of the whole shards there, by name."""

    def new_file(self, name: str) -> AbstractContextManager[Path]:
        """A path of this machine to write to, which is put in place as `name` when the block ends."""

    def holds(self, name: str, shard: ShardInfo) -> bool:
        """Whether `name` is in place and the very bytes that `shard` records."""

    def publish(self) -> None:
        """Put the rest in place: with this the shards are whole."""


@dataclass(frozen=True)
class FolderDestination:
    """A folder, which appears whole."""

    out: Path

    @property
    def place(self) -> str:
        """The folder."""
        return str(self.out)

    @property
    def work(self) -> Path:
        """A hidden folder beside it, on the same disk."""
        return self.out.with_name(f".{self.out.name}.building")

    def in_use(self) -> bool:
        """Whether the folder holds anything, or is a file."""
        return self.out.exists() and not (self.out.is_dir() and not any(self.out.iterdir()))

    def plan(self) -> str | None:
        """The plan in the folder."""
        path = self.out / PLAN_FILE
        return path.read_text() if path.is_file() else None

    def indexes(self) -> dict[str, Index]:
        """The indexes below the folder."""
        return {split: read_index(self.out / split) for split in SPLITS if (self.out / split).is_dir()}

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path beside the file's own."""
        path = self.work / "shards" / name
        with whole_file(path) as partial:
            yield partial

    def holds(self, name: str, shard: ShardInfo) -> bool:
        """Whether the file is there with the recorded size and sha256."""
        path = self.work / "shards" / name
        return path.is_file() and path.stat().st_size == shard.bytes and file_sha256(path) == shard.sha256

    def publish(self) -> None:
        """Rename the working folder's shards to the folder, without what a killed process left."""
        for partial in (self.work / "shards").rglob(".*"):
            partial.unlink()
        os.replace(self.work / "shards", self.out)


@dataclass(frozen=True)
class StoreDestination:
    """A URL: shards are put there one by one, the training split's index.json last.

    cache: the folder of this machine in which the working folder lies.
    """

    url: str
    cache: Path
    remote: RemoteConfig

    @property
    def place(self) -> str:
        """The URL, without what is secret in it."""
        return shown(self.url)

    @property
    def work(self) -> Path:
        """A folder of this machine, named after the URL."""
        return self.cache / "building" / hashlib.sha256(self.url.encode()).hexdigest()[:12]

    def in_use(self) -> bool:
        """Whether whole shards are there."""
        return exists(self._last_file(), self.remote)

    def plan(self) -> str | None:
        """The plan at the URL, where the shards are whole."""
        return get_bytes(join(self.url, PLAN_FILE), self.remote).decode() if self.in_use() else None

    def indexes(self) -> dict[str, Index]:
        """The indexes below the URL."""
        splits = [split for split in SPLITS if exists(join(self.url, f"{split}/{INDEX_FILE}"), self.remote)]
        return {split: fetch_index(join(self.url, split), self.remote) for split in splits}

    @contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """A path in a temporary folder, gone when its file is at the URL. Raises OSError where the store fails."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name.rpartition("/")[2]
            yield path
            self._put(path, name)

    def holds(self, name: str, shard: ShardInfo) -> bool:
        """Whether the file is at the URL: its record was written when its upload had ended."""
        with _failures_as_os_errors():
            return exists(join(self.url, name), self.remote)

    def publish(self) -> None:
        """Put the plan and the indexes at the URL. Raises OSError where the store fails."""
        shards = self.work / "shards"
        self._put(shards / PLAN_FILE, PLAN_FILE)
        for split in reversed([split for split in SPLITS if (shards / split).is_dir()]):
            for name in (ROWS_FILE, INDEX_FILE):
                self._put(shards / split / name, f"{split}/{name}")

    def _put(self, path: Path, name: str) -> None:
        with _failures_as_os_errors():
            put_file(path, join(self.url, name), self.remote)

    def _last_file(self) -> str:
        return join(self.url, f"train/{INDEX_FILE}")


@contextmanager
def _failures_as_os_errors() -> Iterator[None]:
    """A store that fails is no fault of the source: what is built is kept, as when a disk is full."""
    try:
        yield
    except UserError as error:
        raise ConnectionError(str(error)) from None


def destination_at(place: str | Path, cache: Path, remote: RemoteConfig) -> Destination:
    """The destination at a folder or URL. Raises UserError for a URL that cannot be written to."""
    if not is_url(place):
        return FolderDestination(Path(place))
    if protocol(str(place)) in ("http", "https"):
        raise UserError(f"{shown(str(place))}: cannot be written over http; build to a folder, s3:// or gs://")
    return StoreDestination(str(place), cache, remote)
