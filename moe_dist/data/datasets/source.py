"""What a downloaded dataset's files look like to its reader: a folder and a tar are the same."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from moe_dist.data.storage.tars import Member, members
from moe_dist.errors import UserError


class Reader(Protocol):
    """Reads files by their path below the source; can be pickled, and holds nothing open."""

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""


@dataclass(frozen=True)
class FolderReader:
    """Files below a folder."""

    where: Path

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""
        try:
            return (self.where / path).read_bytes()
        except OSError as error:
            raise UserError(f"{self.where}: {path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class TarReader:
    """Files of a tar, read in place: nothing is extracted."""

    where: Path
    members: Mapping[str, Member]

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""
        member = self.members[path]
        try:
            with self.where.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise UserError(f"{self.where}: {path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Tree:
    """A source's files and folders by their path below it, with `/` between folders; hidden ones are left out.

    files: sorted; reader: what of the tree must travel to another process that reads the files.
    """

    where: Path
    files: list[str]
    folders: set[str]
    reader: Reader

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""
        return self.reader.read(path)


def open_tree(source: Path) -> Tree:
    """The files of the folder or tar `source`. Raises UserError where it is missing or a damaged or compressed tar."""
    if source.is_dir():
        return _folder_tree(source)
    if source.is_file():
        return _tar_tree(source)
    raise _missing(source)


def fingerprint_parts(source: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of a source's files: cheap to read, different once the source changes."""
    if source.is_dir():
        paths = [source / path for path in _folder_tree(source).files]
    elif source.is_file():
        paths = [source]
    else:
        raise _missing(source)
    stats = [(path, path.stat()) for path in paths]
    return [(str(path.relative_to(source.parent)), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _missing(source: Path) -> UserError:
    return UserError(f"{source}: no such folder or tar; set data.source (--from) to where the dataset was downloaded")


def _folder_tree(where: Path) -> Tree:
    files: list[str] = []
    folders: set[str] = set()
    for folder, subfolders, names in os.walk(where, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = os.path.relpath(folder, where).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        folders.update(prefix + name for name in subfolders)
        files.extend(prefix + name for name in names if not name.startswith("."))
    return Tree(where, sorted(files), folders, FolderReader(where))


def _tar_tree(where: Path) -> Tree:
    files: dict[str, Member] = {}
    folders: set[str] = set()
    try:
        for member in members(where):
            _add(member, files, folders)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return Tree(where, sorted(files), folders, TarReader(where, files))


def _add(member: Member, files: dict[str, Member], folders: set[str]) -> None:
    path = PurePosixPath(member.name)
    if any(part.startswith(".") for part in path.parts):
        return
    folders.update(str(parent) for parent in path.parents if parent.name)
    if member.is_folder:
        folders.add(str(path))
    elif str(path) in files:
        raise ValueError(f"{member.name} occurs twice")
    else:
        files[str(path)] = member
