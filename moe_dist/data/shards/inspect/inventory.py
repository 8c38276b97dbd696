"""The shards in the cache: their datasets and states."""

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
    found = []
    for folder in sorted(folder for folder in (cache / "shards").glob("*") if folder.is_dir()):
        if folder.name.endswith(_BEGUN):
            name = folder.name.removeprefix(".").removesuffix(_BEGUN)
            found.append(CachedShards(folder.with_name(name), name.partition("-")[0], "building"))
        else:
            found.append(_finished(folder))
    return found


def _finished(folder: Path) -> CachedShards:
    """The shards of a build that has ended; where an index cannot be read, their dataset is taken from the name."""
    counts = {}
    dataset = folder.name.partition("-")[0]  # cifar100-lt100-<fingerprint>
    try:
        for split in SPLITS:
            if split != "val" or (folder / split).is_dir():
                dataset = read_index(folder / split).dataset
                counts[split] = len(ShardSet.open(folder / split))
    except UserError as error:
        return CachedShards(folder, dataset, f"damaged: {error}", counts)
    return CachedShards(folder, dataset, "whole", counts)
