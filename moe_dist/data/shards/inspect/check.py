"""Checking shards for damage, in a folder or under a URL: every byte is read and every problem is named."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.shards.files import fetch_index
from moe_dist.data.shards.index import INDEX_FILE, Index, read_index
from moe_dist.data.shards.inspect.rows import row_states
from moe_dist.data.shards.scan import scan_shard
from moe_dist.data.storage.store import exists, get_file, is_url, join, list_names
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.settings.data import RemoteConfig


def check_shards(place: str | Path, remote: RemoteConfig | None = None) -> list[str]:
    """Everything that is wrong with the shards at `place` (a split, or train, val and test), as "shard: key: reason".

    An empty list says that every image decodes and every byte is the one that was indexed. Shards under a URL are
    fetched one by one, and not kept. Raises UserError where there is no such folder.
    """
    return [problem for split in splits_at(place, remote or RemoteConfig()) for problem in _check_split(split)]


@dataclass(frozen=True)
class SplitFolder:
    """A split in a folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The split's name."""
        return self.folder.name

    def names(self) -> list[str]:
        """The files there."""
        return sorted(path.name for path in self.folder.iterdir())

    def holds(self, name: str) -> bool:
        """Whether there is a file called `name`."""
        return (self.folder / name).is_file()

    def index(self) -> Index:
        """The split's index. Raises UserError."""
        return read_index(self.folder)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The path of a file."""
        yield self.folder / name


@dataclass(frozen=True)
class SplitUrl:
    """A split under a URL."""

    url: str
    remote: RemoteConfig

    @property
    def name(self) -> str:
        """The split's name."""
        return self.url.rstrip("/").rpartition("/")[2]

    def names(self) -> list[str]:
        """The files there; none where the store shows no listing, as most web servers."""
        return list_names(self.url, self.remote)

    def holds(self, name: str) -> bool:
        """Whether there is a file called `name`. Raises UserError where the store does not say."""
        return exists(join(self.url, name), self.remote)

    def index(self) -> Index:
        """The split's index. Raises UserError."""
        return fetch_index(self.url, self.remote)

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """The path of a temporary copy of a file. Raises UserError where it cannot be fetched."""
        with tempfile.TemporaryDirectory() as folder:
            get_file(join(self.url, name), Path(folder) / name, self.remote)
            yield Path(folder) / name


Split = SplitFolder | SplitUrl


def splits_at(place: str | Path, remote: RemoteConfig) -> list[Split]:
    """`place` itself, where it is a split; else its train, val (where there is one) and test.

    Raises UserError where there is no such folder.
    """
    if is_url(place):
        url = SplitUrl(str(place), remote)
        if url.holds(INDEX_FILE):
            return [url]
        below = [SplitUrl(join(url.url, split), remote) for split in SPLITS]
        return [split for split in below if split.name != "val" or split.holds(INDEX_FILE)]
    folder = Path(place)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards")
    if (folder / INDEX_FILE).is_file():
        return [SplitFolder(folder)]
    return [SplitFolder(folder / split) for split in SPLITS if split != "val" or (folder / split).is_dir()]


def _check_split(split: Split) -> list[str]:
    try:
        index = split.index()
    except UserError as error:
        return [str(error)]
    known = {shard.name for shard in index.shards} | index.dropped.keys()
    problems = [f"{name}: not in the index" for name in split.names() if name.endswith(".tar") and name not in known]
    shard_of_key: dict[str, str] = {}
    for number, shard in enumerate(index.shards):
        try:
            if not split.holds(shard.name):
                problems.append(f"{shard.name}: the shard is missing")
                continue
            with split.file(shard.name) as path:
                found = shard_problems(path, index, number, shard_of_key)
        except UserError as error:
            found = [str(error)]
        problems += [f"{shard.name}: {problem}" for problem in found]
    return [f"{split.name}/{problem}" for problem in problems]


def shard_problems(path: Path, index: Index, number: int, shard_of_key: dict[str, str]) -> list[str]:
    """What is wrong with the `number`-th shard of `index`, at `path`; its keys are added to `shard_of_key`."""
    shard, classes = index.shards[number], len(index.class_names)
    rows = index.rows[index.rows["shard"] == number]
    changed = file_sha256(path) != shard.sha256
    if not changed and shard.name in index.dropped:  # known to be damaged: what the index kept of it must be whole
        states = row_states(path, rows, classes)
        keys, problems = [state.key for state in states], [f"{s.name}: {s.problem}" for s in states if s.problem]
    else:
        scan = scan_shard(path, number, classes)
        keys, problems = scan.keys, list(scan.problems)
        if changed:
            problems.append("changed since it was indexed (its sha256 is another)")
        elif not np.array_equal(scan.rows, rows):
            problems.append("its samples are not those of the index")
    return problems + [
        f"{key}: the key is also in {shard_of_key[key]}"
        for key in keys
        if shard_of_key.setdefault(key, shard.name) != shard.name
    ]
