"""Which datasets have shards in the cache, and in what state."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.shards.index import read_index
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError

_BEGUN = ".building"


@dataclass(frozen=True)
class CachedShards:
    """A folder of shards: its dataset, its state ("whole", "building", "damaged: why"), and images by split."""

    folder: Path
    dataset: str
    state: str
    counts: dict[str, int] = field(default_factory=dict)


def cached_shards(cache: Path) -> list[CachedShards]:
    """The shards below cache/shards, sorted by name.

    whole: indexes and shards fit together by their sizes; `moe-dist shards check` reads every byte.
    """
    folders = sorted(folder for folder in (cache / "shards").glob("*") if folder.is_dir())
    return [_begun(folder) if folder.name.endswith(_BEGUN) else _finished(folder) for folder in folders]


def _begun(folder: Path) -> CachedShards:
    name = folder.name.removeprefix(".").removesuffix(_BEGUN)
    return CachedShards(folder.with_name(name), _dataset_of(name), "building")


def _finished(folder: Path) -> CachedShards:
    counts = {}
    dataset = _dataset_of(folder.name)
    try:
        for split in SPLITS:
            if split != "val" or (folder / split).is_dir():
                dataset = read_index(folder / split).dataset
                counts[split] = len(ShardSet.open(folder / split))
    except UserError as error:
        return CachedShards(folder, dataset, f"damaged: {error}", counts)
    return CachedShards(folder, dataset, "whole", counts)


def _dataset_of(name: str) -> str:
    """The dataset in the name of a folder of the cache (cifar100-lt100-<fingerprint>)."""
    return name.partition("-")[0]
