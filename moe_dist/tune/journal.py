"""A search's memory: one JSON object a line, on disk before anything depends on it, so that kill -9 costs nothing told.

The first line says which search it is. A batch is one line when it is asked for and one when it is told: a line that a
kill cut short is as if it had never been written.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError

VERSION = 1


class Journal:
    """An open journal; `records` are those that an earlier run left."""

    def __init__(self, path: Path, search: Mapping[str, Any]) -> None:
        """Open or begin the journal at `path` of the search that the JSON values `search` describe.

        Raises UserError where the file is of another search, naming what differs, or is no journal.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path)
        self.records = _records(path, lines, search)
        self._file = path.open("r+b" if path.exists() else "w+b")
        self._file.seek(sum(map(len, lines)))
        self._file.truncate()
        if not lines:
            self.write({"journal": VERSION, "search": search})

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; it is on disk when this returns."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def refuse_other_search(path: Path, search: Mapping[str, Any]) -> None:
    """Raise UserError where `Journal(path, search)` would; nothing is written."""
    _records(path, _whole_lines(path), search)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _records(path: Path, lines: Sequence[bytes], search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands under the header, which must be of this search."""
    if not lines:
        return []
    header, *records = [_read(path, number, line) for number, line in enumerate(lines, 1)]
    _require_same(path, header, json.loads(json.dumps(search)))
    for number, record in enumerate(records, 2):
        if not ({"study", "asked"} <= set(record) or {"study", "told", "at"} <= set(record)):
            raise _no_record(path, number)
    return records


def _read(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise _no_record(path, number)
    return record


def _no_record(path: Path, number: int) -> UserError:
    return UserError(f"{path}: line {number} is no record of a search; restore the file, or search in another folder")


def _require_same(path: Path, header: Mapping[str, Any], search: Mapping[str, Any]) -> None:
    if header.get("journal") != VERSION or not isinstance(header.get("search"), dict):
        raise UserError(f"{path}: is no journal of a search that this version reads; search in another folder")
    before = header["search"]
    different = [name for name in {**before, **search} if before.get(name) != search.get(name)]
    if different:
        raise UserError(
            f"{path}: is the journal of another search, which differs in {', '.join(different)}; search in another "
            "folder, or set the job back to what it was"
        )
