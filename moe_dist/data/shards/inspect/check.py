"""Checking shards for damage, in a folder or under a URL: every byte is read and every problem is named."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.shards.index import INDEX_FILE, Index, read_index
from moe_dist.data.shards.scan import image_problem, label_problem, scan_shard
from moe_dist.data.storage.store import exists, is_url, join, list_names, local_file, shown
from moe_dist.data.storage.tars import BLOCK, member_name
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig


def check_shards(place: str | Path, remote: RemoteConfig = DEFAULT_REMOTE) -> list[str]:
    """Everything that is wrong with the shards at `place` (a split, or train, val and test), as "shard: key: reason".

    An empty list says that every image decodes and every byte is the one that was indexed. Shards under a URL are
    fetched one by one, and not kept. Raises UserError where there is no such folder.
    """
    return [problem for split in splits_at(place, remote) for problem in _check_split(split, remote)]


def splits_at(place: str | Path, remote: RemoteConfig = DEFAULT_REMOTE) -> list[str]:
    """The places of the splits at `place`: itself, where it is a split; else its train, val (if there is one) and test.

    Raises UserError where there is no such folder.
    """
    if not is_url(place) and not Path(place).is_dir():
        raise UserError(f"{place}: no such folder of shards")
    if exists(join(place, INDEX_FILE), remote):
        return [str(place)]
    val = join(place, "val")
    has_val = exists(join(val, INDEX_FILE), remote) if is_url(place) else Path(val).is_dir()
    return [join(place, split) for split in SPLITS if split != "val" or has_val]


def split_name(place: str) -> str:
    """The name of the split at `place`."""
    return shown(place).rstrip("/").rpartition("/")[2]


def _check_split(split: str, remote: RemoteConfig) -> list[str]:
    """Everything that is wrong with the split at the place `split`."""
    try:
        index = read_index(split, remote)
    except UserError as error:
        return [str(error)]
    tars = [name for name in list_names(split, remote) if name.endswith(".tar")]
    known = {shard.name for shard in index.shards} | index.dropped.keys()
    problems = [f"{name}: not in the index" for name in tars if name not in known]
    shard_of_key: dict[str, str] = {}
    for number, shard in enumerate(index.shards):
        try:
            if not exists(join(split, shard.name), remote):
                problems.append(f"{shard.name}: the shard is missing")
                continue
            with local_file(join(split, shard.name), remote) as path:
                require_readable(path)
                found = shard_problems(path, index, number, shard_of_key)
        except UserError as error:
            found = [str(error)]
        problems += [f"{shard.name}: {problem}" for problem in found]
    return [f"{split_name(split)}/{problem}" for problem in problems]


def require_readable(shard: Path) -> None:
    """Raise UserError where the file of a shard cannot be opened."""
    try:
        shard.open("rb").close()
    except OSError as error:
        raise UserError(f"{shard}: cannot be read ({error.strerror}); make it readable") from None


def shard_problems(path: Path, index: Index, number: int, shard_of_key: dict[str, str]) -> list[str]:
    """Everything that is wrong with the `number`-th shard of `index`, at `path`; adds its keys to `shard_of_key`."""
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


@dataclass(frozen=True)
class RowState:
    """A row's image: the name of its member ("00001/a.png"; "byte 512" where that is damaged) and what is wrong."""

    name: str
    problem: str | None

    @property
    def key(self) -> str:
        """The sample's key."""
        return self.name.rpartition(".")[0]


def row_states(path: Path, rows: np.ndarray, classes: int) -> list[RowState]:
    """The states of the samples `rows` [n] of ROW of the shard at `path`, in their order.

    The samples are read at the places that the index names, so that damage between them does not matter.
    """
    states = []
    with path.open("rb") as file:
        for row in rows:
            offset = int(row["offset"])
            file.seek(offset - BLOCK)
            name = member_name(file.read(BLOCK), offset)
            data = file.read(int(row["length"]))
            if zlib.crc32(data) != row["crc32"]:
                states.append(RowState(name, "changed or cut short since it was indexed"))
                continue
            x1, y1, x2, y2 = (int(side) for side in row["roi"])
            problem = label_problem(int(row["label"]), classes, unlabelled=True)
            problem = problem or image_problem(data, None if x1 < 0 else (x1, y1, x2, y2))
            states.append(RowState(name, problem))
    return states
