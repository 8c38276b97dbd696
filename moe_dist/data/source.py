"""What a downloaded dataset's files look like to its reader: a folder and a tar are the same."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Protocol

from moe_dist.data.tars import Member, members
from moe_dist.errors import UserError


class Tree(Protocol):
    """Files by their path below the source, with `/` between folders; names that start with a dot are left out."""

    where: Path
    files: list[str]
    folders: set[str]

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`."""


def open_tree(source: Path) -> Tree:
    """The files of the folder or tar `source`. Raises UserError where it is missing or a damaged or compressed tar."""
    if source.is_dir():
        return FolderTree(source)
    if source.is_file():
        return TarTree(source)
    raise UserError(f"{source}: no such folder or tar; set data.source to where the dataset was downloaded")


def fingerprint_parts(source: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of a source's files: cheap to read, different once the source changes."""
    if source.is_dir():
        paths = [source / path for path in FolderTree(source).files]
    elif source.is_file():
        paths = [source]
    else:
        raise UserError(f"{source}: no such folder or tar; set data.source to where the dataset was downloaded")
    stats = [(path, path.stat()) for path in paths]
    return [(str(path.relative_to(source.parent)), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


class FolderTree:
    """The files below a folder."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.files: list[str] = []
        self.folders: set[str] = set()
        for folder, subfolders, names in os.walk(where, followlinks=True):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            below = PurePosixPath(Path(folder).relative_to(where).as_posix())
            self.folders.update(str(below / name) for name in subfolders)
            self.files.extend(str(below / name) for name in names if not name.startswith("."))
        self.files.sort()

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`."""
        return (self.where / path).read_bytes()


class TarTree:
    """The files of a tar, read in place: nothing is extracted."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.folders: set[str] = set()
        self._members: dict[str, Member] = {}
        try:
            for member in members(where):
                self._add(member)
        except ValueError as error:
            raise UserError(f"{where}: {error}") from None
        self.files = sorted(self._members)

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`."""
        member = self._members[path]
        with self.where.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def _add(self, member: Member) -> None:
        path = PurePosixPath(member.name)
        if any(part.startswith(".") for part in path.parts):
            return
        self.folders.update(str(parent) for parent in path.parents if parent.name)
        if member.is_folder:
            self.folders.add(str(path))
        elif str(path) in self._members:
            raise ValueError(f"{member.name} occurs twice")
        else:
            self._members[str(path)] = member
