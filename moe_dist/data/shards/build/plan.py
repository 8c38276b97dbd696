"""The plan of a build of shards: everything that decides their bytes."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_dist.data.datasets.catalog import dataset
from moe_dist.data.datasets.source import fingerprint_parts
from moe_dist.data.longtail import LongTail
from moe_dist.data.shards.index import INDEX_VERSION, Shrink
from moe_dist.errors import UserError

PLAN_FILE = "plan.json"
SAMPLES_PER_SHARD = 4096


@dataclass(frozen=True)
class Plan:
    """A build's settings; two builds of equal plans give the same bytes.

    source: the fingerprint of the source as it was when the build began.
    """

    dataset: str
    source: str
    long_tail: LongTail | None = None
    shrink: Shrink | None = None
    samples_per_shard: int = SAMPLES_PER_SHARD

    def text(self) -> str:
        """The plan as JSON, one setting a line."""
        return json.dumps(asdict(self), indent=1) + "\n"

    def require_same(self, text: str, where: str) -> None:
        """Raise UserError, naming what differs, where the plan in `text`, which was found at `where`, is another."""
        try:
            other = dict(json.loads(text))
        except (ValueError, TypeError):
            other = {}
        ours = asdict(self)
        differing = [
            f"{name} {_in_words(other.get(name))}, not {_in_words(ours[name])}"
            for name in ours
            if other.get(name) != ours[name]
        ]
        if differing:
            raise UserError(
                f"{where}: was begun from other settings ({'; '.join(differing)}); name another folder, or remove it"
            )


def _in_words(value: Any) -> str:
    """A setting for messages: a mapping as its names and values, None as "none"."""
    if isinstance(value, dict):
        return " ".join(f"{name} {part}" for name, part in value.items())
    return "none" if value is None else str(value)


def source_fingerprint(dataset_name: str, source: Path | None, long_tail: LongTail | None = None) -> str:
    """A short name for a dataset's source as it is now, from its files' names, sizes and times of change."""
    parts = [] if source is None else fingerprint_parts(source)
    tail = [] if long_tail is None else [asdict(long_tail)]
    content = json.dumps([INDEX_VERSION, dataset_name, dataset(dataset_name).version(), parts, *tail])
    return hashlib.sha256(content.encode()).hexdigest()[:12]
