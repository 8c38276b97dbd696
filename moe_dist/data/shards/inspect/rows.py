"""Looking at a shard's samples where the index says that they lie, whatever lies between them."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from moe_dist.data.shards.scan import image_problem, label_problem
from moe_dist.data.storage.tars import BLOCK, member_name


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
    """How the samples `rows` [n] of ROW of the shard at `path` are, in their order."""
    with path.open("rb") as file:
        return [RowState(_member_name(file, int(row["offset"])), _problem(file, row, classes)) for row in rows]


def _member_name(file: BinaryIO, offset: int) -> str:
    file.seek(offset - BLOCK)
    return member_name(file.read(BLOCK), offset)


def _problem(file: BinaryIO, row: np.void, classes: int) -> str | None:
    file.seek(int(row["offset"]))
    data = file.read(int(row["length"]))
    if zlib.crc32(data) != row["crc32"]:
        return "changed or cut short since it was indexed"
    x1, y1, x2, y2 = (int(side) for side in row["roi"])
    return label_problem(int(row["label"]), classes) or image_problem(data, None if x1 < 0 else (x1, y1, x2, y2))
