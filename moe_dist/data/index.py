"""The index beside a split's shards: what each shard holds, and where each sample lies in it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from moe_dist.errors import UserError

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


@dataclass(frozen=True)
class ShardInfo:
    """One shard: its file name, samples, bytes and sha256."""

    name: str
    samples: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A split's index: `rows` [N] of ROW in order of shard and place, `digest` the rows' sha256."""

    dataset: str
    split: str
    class_names: tuple[str, ...]
    shards: tuple[ShardInfo, ...]
    rows: np.ndarray
    digest: str


def rows_digest(rows: np.ndarray) -> str:
    """The name of a split's content: rows hold every image's checksum, label, track and region."""
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def write_index(
    folder: Path,
    dataset: str,
    split: str,
    class_names: Sequence[str],
    shards: Sequence[ShardInfo],
    rows: np.ndarray,
    image_kinds: dict[str, int],
) -> None:
    """Write index.npy and then index.json, whose presence says that the split is whole."""
    content = {
        "version": INDEX_VERSION,
        "dataset": dataset,
        "split": split,
        "samples": len(rows),
        "class_names": list(class_names),
        "class_counts": np.bincount(rows["label"], minlength=len(class_names)).tolist(),
        "image_kinds": image_kinds,
        "shards": [asdict(shard) for shard in shards],
        "rows_sha256": rows_digest(rows),
    }
    np.save(folder / ROWS_FILE, rows)
    partial = folder / f".{INDEX_FILE}"
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, folder / INDEX_FILE)


def read_index(folder: Path) -> Index:
    """The index in `folder`. Raises UserError where it is missing, of another version or does not fit together."""
    if not (folder / INDEX_FILE).is_file():
        raise UserError(f"{folder}: no {INDEX_FILE}; build the shards with `moe-dist shards SOURCE OUT`")
    try:
        content = json.loads((folder / INDEX_FILE).read_text())
        if (version := content["version"]) != INDEX_VERSION:
            raise UserError(f"{folder}: index version {version} is not {INDEX_VERSION}; build the shards again")
        rows = np.load(folder / ROWS_FILE, allow_pickle=False)
        index = Index(
            dataset=content["dataset"],
            split=content["split"],
            class_names=tuple(content["class_names"]),
            shards=tuple(ShardInfo(**shard) for shard in content["shards"]),
            rows=rows,
            digest=content["rows_sha256"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the index cannot be read ({error}); build the shards again") from None
    if rows.dtype != ROW or rows_digest(rows) != index.digest:
        raise UserError(f"{folder}: {ROWS_FILE} does not belong to {INDEX_FILE}; build the shards again")
    return index
