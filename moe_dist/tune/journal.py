"""A search's journal: one JSON object a line, on disk before anything depends on it, so that kill -9 loses no outcome.

The first line says which search it is. Each batch has one line when it begins ("asked") and one with its outcomes
("told"). A last line that a kill cut short is ignored.
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
    """An open journal; `records` are those of earlier runs."""

    def __init__(self, path: Path, search: Mapping[str, Any]) -> None:
        """Open or begin the journal at `path` of the search that the JSON values `search` describe.

        Raises UserError where the file is the journal of another search, naming the differences, or not a journal.
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
        """Append a record, which is on disk when this returns."""
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def require_same_search(path: Path, search: Mapping[str, Any]) -> None:
    """Raise UserError where `Journal(path, search)` would; nothing is written."""
    _records(path, _whole_lines(path), search)


def _whole_lines(path: Path) -> list[bytes]:
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _records(path: Path, lines: Sequence[bytes], search: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records below the header. Raises UserError where a line is damaged or the header is of another search."""

    def damaged(number: int) -> UserError:
        return UserError(
            f"{path}: line {number} is not a record of a search; restore the file, or search in another folder"
        )

    parsed: list[dict[str, Any]] = []
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise damaged(number)
        parsed.append(content)
    if not parsed:
        return []
    header, *records = parsed
    _require_same(path, header, json.loads(json.dumps(search)))
    for number, record in enumerate(records, 2):
        if not ({"study", "asked"} <= set(record) or {"study", "told", "at"} <= set(record)):
            raise damaged(number)
    return records


def _require_same(path: Path, header: Mapping[str, Any], search: Mapping[str, Any]) -> None:
    """Raise UserError where the header is not that of the journal of `search`."""
    if header.get("journal") != VERSION or not isinstance(header.get("search"), dict):
        raise UserError(f"{path}: is not a journal of a search that this version reads; search in another folder")
    before = header["search"]
    different = [name for name in {**before, **search} if before.get(name) != search.get(name)]
    if different:
        raise UserError(
            f"{path}: is the journal of another search, which differs in {', '.join(different)}; search in another "
            "folder, or set the job back to what it was"
        )
