"""The driver's part of a job's data: where its shards are, and building them where they are missing."""

from __future__ import annotations

from pathlib import Path

from moe_dist.data.opened.opened import are_whole, long_tail_of
from moe_dist.data.shards.build.build import OnProgress, build_shards
from moe_dist.data.shards.build.plan import source_fingerprint
from moe_dist.data.storage.store import is_url, join, shown
from moe_dist.errors import UserError
from moe_dist.places import cache_folder
from moe_dist.settings.data import DataConfig


def shards_place(config: DataConfig, cache: Path | str) -> str:
    """The folder or URL where the job's shards are, or will be built.

    In the shared cache they are named after their dataset, long tail and source: digits-<fingerprint>,
    cifar100-lt100-<fingerprint>.
    """
    if config.shards is not None:
        return config.shards if is_url(config.shards) else str(Path(config.shards).resolve())
    long_tail = long_tail_of(config)
    tail = "" if long_tail is None else f"-lt{long_tail.imbalance:g}"
    fingerprint = source_fingerprint(config.dataset, config.source, long_tail)
    return join(cache, "shards", f"{config.dataset}{tail}-{fingerprint}")


def ensure_shards(config: DataConfig, cache: Path | str, on_progress: OnProgress | None = None) -> str:
    """The folder or URL of the job's shards. They are built from the source if they are not there yet.

    cache: the shared cache. Raises UserError where they are not under a URL that the job names: a mistyped address is
    likelier than a wish to fill a bucket.
    """
    place = shards_place(config, cache)
    if are_whole(place, config):
        return place
    if config.shards is not None and is_url(place):
        raise UserError(
            f"{shown(place)}: holds no whole shards; check the address, or build them with "
            f"`moe-dist shards {config.dataset} {shown(place)} --from PATH`"
        )
    try:
        build_shards(
            config.dataset,
            config.source,
            place,
            long_tail=long_tail_of(config),
            cache=cache_folder(),
            remote=config.remote,
            on_progress=on_progress,
        )
    except UserError:
        if not are_whole(place, config):  # or another process has ended a build of other settings meanwhile
            raise
    return place
