"""The index beside a split's shards: what each shard holds, and where each sample lies in it.

Letters: N samples of a split, C classes.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.longtail import LongTail, class_counts
from moe_dist.data.storage.store import get_bytes, join, shown
from moe_dist.data.storage.tars import BLOCK
from moe_dist.errors import UserError
from moe_dist.files import whole_file, write_json
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig

INDEX_VERSION = 1
INDEX_FILE, ROWS_FILE = "index.json", "index.npy"
ROW = np.dtype(
    [
        ("shard", "<i4"),
        ("label", "<i4"),
        ("offset", "<i8"),
        ("length", "<i4"),
        ("crc32", "<u4"),
        ("group", "<i4"),
        ("roi", "<i4", (4,)),
    ]
)
"""One sample: its shard, label, the image's place in the shard and checksum, its track (-1: none) and region (-1)."""
NO_REGION = (-1, -1, -1, -1)
_NPY_1_0 = b"\x93NUMPY\x01\x00"


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, samples, bytes and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shrink:
    """How large images were made smaller: to a short side of `short_side` pixels, as JPEGs of `quality` (1 to 100)."""

    short_side: int
    quality: int = 90


def rows_digest(rows: np.ndarray) -> str:
    """The sha256 of a split's rows, which names its content: every image's checksum, label, track and region."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


@dataclass(frozen=True)
class Index:
    """A split's index: `rows` [N] of ROW in order of shard and place.

    image_kinds: images by file name extension; long_tail, shrink: how the dataset was made smaller, None where it was
    not; shuffled: whether the dataset's own order is known to be a shuffled one; dropped: what a repair left out of
    each shard, and why (check.py looks only at the rows that remain); superclasses [C]: the superclass's name of every
    class, None for a dataset without.
    """

    dataset: str
    split: str
    class_names: tuple[str, ...]
    shards: tuple[ShardInfo, ...]
    rows: np.ndarray
    image_kinds: Mapping[str, int]
    long_tail: LongTail | None = None
    shuffled: bool = False
    shrink: Shrink | None = None
    dropped: Mapping[str, Sequence[str]] = field(default_factory=dict)
    superclasses: tuple[str, ...] | None = None

    @cached_property
    def digest(self) -> str:
        """The `rows_digest` of the rows."""
        return rows_digest(self.rows)

    @property
    def class_counts(self) -> np.ndarray:
        """Samples [C] of each class; those without a label are in none."""
        return class_counts(self.rows["label"], len(self.class_names))


def write_index(folder: Path, index: Index) -> None:
    """Write index.npy and then index.json, whose presence says that the split is whole."""
    content = {
        "version": INDEX_VERSION,
        "dataset": index.dataset,
        "split": index.split,
        "samples": len(index.rows),
        "class_names": list(index.class_names),
        "class_counts": index.class_counts.tolist(),
        "image_kinds": dict(sorted(index.image_kinds.items())),
        "long_tail": None if index.long_tail is None else asdict(index.long_tail),
        "shuffled": index.shuffled,
        "shrink": None if index.shrink is None else asdict(index.shrink),
        "dropped": {shard: list(samples) for shard, samples in index.dropped.items()},
        "shards": [asdict(shard) for shard in index.shards],
        "rows_sha256": index.digest,
    }
    if index.superclasses is not None:
        content["superclasses"] = list(index.superclasses)
    with whole_file(folder / ROWS_FILE) as partial, partial.open("wb") as file:
        np.save(file, index.rows)
    write_json(folder / INDEX_FILE, content)


def read_index(place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE) -> Index:
    """The index of the split in the folder or under the URL `place`, as it is there now.

    Raises UserError where it is missing or cannot be fetched, of another version, or does not fit together.
    """
    where = shown(place)
    try:
        content, rows = (get_bytes(join(place, name), remote) for name in (INDEX_FILE, ROWS_FILE))
    except FileNotFoundError as error:
        missing = Path(error.filename).name
        raise UserError(f"{where}: no {missing}; build the shards with `moe-dist shards SOURCE OUT`") from None
    except OSError as error:
        raise UserError(
            f"{where}: the index cannot be read ({error}); make it readable, or build the shards again"
        ) from None
    return parse_index(where, content, rows)


def parse_index(where: str, content: bytes, rows: bytes) -> Index:
    """The index made of the bytes of index.json and index.npy; `where` names their place in messages.

    Whatever the bytes are, nothing is unpickled, and the shards' names are files beside the index.
    Raises UserError where they are not an index, are one of another version, or do not belong together.
    """
    try:
        fields = json.loads(content)
        if (version := fields["version"]) != INDEX_VERSION:
            raise UserError(f"{where}: index version {version} is not {INDEX_VERSION}; build the shards again")
        index = Index(
            dataset=fields["dataset"],
            split=fields["split"],
            class_names=tuple(str(name) for name in fields["class_names"]),
            shards=tuple(_parse_shard(shard) for shard in fields["shards"]),
            rows=_parse_rows(rows),
            image_kinds=dict(fields["image_kinds"]),
            long_tail=LongTail(**tail) if (tail := fields.get("long_tail")) else None,
            shuffled=fields.get("shuffled") is True,  # not known of shards from before it was recorded
            shrink=Shrink(**shrink) if (shrink := fields.get("shrink")) else None,
            dropped=dict(fields.get("dropped", {})),
            superclasses=tuple(map(str, found)) if (found := fields.get("superclasses")) else None,
        )
        rows_sha256 = fields["rows_sha256"]
        if index.superclasses is not None and len(index.superclasses) != len(index.class_names):
            raise ValueError(f"{len(index.superclasses)} superclasses of {len(index.class_names)} classes")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}: the index cannot be read ({error}); build the shards again") from None
    if index.digest != rows_sha256:
        raise UserError(f"{where}: {ROWS_FILE} does not belong to {INDEX_FILE}; build the shards again")
    _require_rows_inside_shards(where, index)
    return index


def _parse_shard(fields: dict[str, Any]) -> ShardInfo:
    """The entry of one shard. Raises ValueError where a field is not what it should be."""
    shard = ShardInfo(**fields)
    if not re.fullmatch(r"[A-Za-z0-9_-]+\.tar", shard.name) or not re.fullmatch(r"[0-9a-f]{64}", shard.sha256):
        raise ValueError(f"{shard.name!r} with sha256 {shard.sha256!r} is not a shard")
    if type(shard.bytes) is not int or not 0 <= shard.bytes < 2**63:
        raise ValueError(f"{shard.name} has {shard.bytes!r} bytes")
    return shard


def _parse_rows(data: bytes) -> np.ndarray:
    """The rows [N] of ROW in the bytes of an .npy. Raises ValueError where they hold anything else."""
    file = io.BytesIO(data)
    try:
        shape, _, dtype = np.lib.format.read_array_header_1_0(file) if file.read(8) == _NPY_1_0 else ((), False, None)
    except Exception:  # a broken header raises whatever Python's tokenizer does
        dtype = None
    rows = data[file.tell() :]
    if dtype != ROW or shape != (len(rows) // ROW.itemsize,) or len(rows) % ROW.itemsize:
        raise ValueError(f"{ROWS_FILE} holds no rows of samples, or not all of them")
    return np.frombuffer(rows, ROW)


def _require_rows_inside_shards(where: str, index: Index) -> None:
    """Raise UserError at the first row that points outside its shard."""
    rows, bytes_of = index.rows, np.array([shard.bytes for shard in index.shards], np.int64)
    listed = (rows["shard"] >= 0) & (rows["shard"] < len(bytes_of))
    inside = listed & (rows["offset"] >= BLOCK) & (rows["length"] > 0)
    inside[listed] &= rows["length"][listed] <= bytes_of[rows["shard"][listed]] - rows["offset"][listed]
    if not inside.all():
        raise UserError(f"{where}: sample {int(np.argmin(inside))} lies outside its shard; build the shards again")
