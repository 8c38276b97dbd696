"""Checking shards for damage: every byte is read and every problem is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_dist.data.index import INDEX_FILE, Index, read_index
from moe_dist.data.samples import SPLITS
from moe_dist.data.scan import scan_shard
from moe_dist.data.shards import file_sha256
from moe_dist.errors import UserError


def check_shards(folder: Path) -> list[str]:
    """Everything that is wrong with the shards in `folder` (a split, or train and test), as "shard: key: reason".

    An empty list says that every image decodes and every byte is the one that was indexed.
    Raises UserError where `folder` does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of shards")
    splits = [folder] if (folder / INDEX_FILE).is_file() else [folder / split for split in SPLITS]
    return [problem for split in splits for problem in _check_split(split)]


def _check_split(folder: Path) -> list[str]:
    try:
        index = read_index(folder)
    except UserError as error:
        return [str(error)]
    listed = {shard.name for shard in index.shards}
    problems = [f"{path.name}: not in the index" for path in sorted(folder.glob("*.tar")) if path.name not in listed]
    shard_of_key: dict[str, str] = {}
    for number, shard in enumerate(index.shards):
        problems += [f"{shard.name}: {problem}" for problem in _check_shard(folder, index, number, shard_of_key)]
    return [f"{folder.name}/{problem}" for problem in problems]


def _check_shard(folder: Path, index: Index, number: int, shard_of_key: dict[str, str]) -> list[str]:
    """The problems of one shard; its keys are added to `shard_of_key`."""
    shard = index.shards[number]
    path = folder / shard.name
    if not path.is_file():
        return ["the shard is missing"]
    scan = scan_shard(path, number, len(index.class_names))
    problems = list(scan.problems)
    for key in scan.keys:
        if shard_of_key.setdefault(key, shard.name) != shard.name:
            problems.append(f"{key}: the key is also in {shard_of_key[key]}")
    if file_sha256(path) != shard.sha256:
        problems.append("changed since it was indexed (its sha256 is another)")
    elif not np.array_equal(scan.rows, index.rows[index.rows["shard"] == number]):
        problems.append("its samples are not those of the index")
    return problems
