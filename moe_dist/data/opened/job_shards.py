"""A job's shards: where they are, built where they are missing, refused where they are of other data than it says."""

from __future__ import annotations

import platform
from pathlib import Path

from moe_dist.data.datasets.samples import SPLITS
from moe_dist.data.longtail import LongTail
from moe_dist.data.shards.build.build import OnProgress, build_shards
from moe_dist.data.shards.build.plan import default_name
from moe_dist.data.shards.files import fetch_index
from moe_dist.data.shards.index import INDEX_FILE, Index, read_index
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.data.storage.store import exists, is_url, join, shown
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig


def long_tail_of(config: DataConfig) -> LongTail | None:
    """The long-tailed form that the job trains on; None for the dataset as it is."""
    if config.imbalance is None:
        return None
    return LongTail(config.imbalance, config.imbalance_choice, config.imbalance_seed)


def shards_place(config: DataConfig, cache: Path) -> str:
    """The folder or URL where the job's shards are, or will be built."""
    if config.shards is not None:
        return config.shards if is_url(config.shards) else str(Path(config.shards).resolve())
    return str(cache / "shards" / default_name(config.dataset, config.source, long_tail_of(config)))


def ensure_shards(config: DataConfig, cache: Path, on_progress: OnProgress | None = None) -> str:
    """The folder or URL of the job's shards. In a folder they are built from the source if they are not there yet.

    Raises UserError where they are not under a URL: a mistyped address is likelier than a wish to fill a bucket.
    """
    place = shards_place(config, cache)
    if are_whole(place, config):
        return place
    if is_url(place):
        raise UserError(
            f"{shown(place)}: holds no whole shards; check the address, or build them with "
            f"`moe-dist shards {config.dataset} {shown(place)} --from PATH`"
        )
    try:
        build_shards(
            config.dataset, config.source, Path(place), long_tail=long_tail_of(config), on_progress=on_progress
        )
    except UserError:
        if not are_whole(place, config):  # or another process has ended a build of other settings meanwhile
            raise
    return place


def are_whole(place: str, config: DataConfig) -> bool:
    """Whether shards were built at `place` to the end."""
    return all(_has_split(place, split, config) for split in ("train", "test"))


def open_shards(config: DataConfig, place: str, cache: Path) -> dict[str, ShardSet]:
    """The splits at `place`: train, val where there is one, test.

    Raises UserError where they are not there (to see from this node), or not the job's.
    """
    if not are_whole(place, config):
        raise UserError(
            f"{shown(place)}: holds no whole shards as {platform.node()} sees it; name a place that every node reaches "
            "in data.shards or MOE_DIST_CACHE, or, if they were removed, run the job again"
        )
    splits = [split for split in SPLITS if split != "val" or _has_split(place, split, config)]
    shards = {split: ShardSet.open(_split_place(place, split), config.remote, cache / "fetched") for split in splits}
    _demand_shards_of(config, shards["train"], shown(place))
    for split, opened in shards.items():
        if opened.class_names != shards["train"].class_names:
            raise UserError(f"{shown(place)}: the train and {split} shards name different classes; build them again")
    return shards


def train_index(place: str, config: DataConfig) -> Index:
    """The index of the training split at `place`. Raises UserError where it cannot be read."""
    split = _split_place(place, "train")
    return fetch_index(split, config.remote) if is_url(split) else read_index(Path(split))


def _split_place(place: str, split: str) -> str:
    return join(place, split) if is_url(place) else str(Path(place) / split)


def _has_split(place: str, split: str, config: DataConfig) -> bool:
    where = _split_place(place, split)
    return exists(join(where, INDEX_FILE), config.remote) if is_url(where) else (Path(where) / INDEX_FILE).is_file()


def _demand_shards_of(config: DataConfig, train: ShardSet, place: str) -> None:
    """Raise UserError where the training shards at `place` are of another dataset or long tail than the job's."""
    if train.dataset != config.dataset:
        raise UserError(
            f"{place}: these are shards of {train.dataset}, the job says data.dataset = {config.dataset}; "
            "change one or the other"
        )
    if train.long_tail != long_tail_of(config):
        raise UserError(
            f"{place}: these shards hold {_in_words(train.long_tail)}, the job says {_in_words(long_tail_of(config))} "
            "(data.imbalance, data.imbalance_choice, data.imbalance_seed); change the job or data.shards"
        )


def _in_words(long_tail: LongTail | None) -> str:
    if long_tail is None:
        return "the dataset as it is"
    seed = f" by seed {long_tail.seed}" if long_tail.choice == "random" else ""
    return f"a long tail of imbalance {long_tail.imbalance:g} ({long_tail.choice} images{seed})"
