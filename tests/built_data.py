"""A job's dataset as a run's driver opens it: the shards are found, or built, before."""

from __future__ import annotations

from pathlib import Path

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.settings.data import DataConfig


def built_data(config: DataConfig, seed: int, cache: Path) -> OpenedData:
    """The opened dataset of `config`, its shards built where they are missing."""
    return open_data(config, seed, cache, ensure_shards(config, cache))
