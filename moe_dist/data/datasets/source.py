"""The files of a downloaded dataset, which a reader finds alike in a folder and in a tar."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_dist.data.storage.tars import Member, members
from moe_dist.errors import UserError


@dataclass(frozen=True)
class Reader:
    """Reads files by their path below the folder or tar `where`; it holds nothing open and can be pickled.

    members: where the files of a tar lie, which is read in place; None for a folder.
    """

    where: Path
    members: Mapping[str, Member] | None

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""
        try:
            if self.members is None:
                return (self.where / path).read_bytes()
            member = self.members[path]
            with self.where.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise UserError(f"{self.where}: {path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Tree(Reader):
    """A source's files, sorted, and folders, by their path below it with `/` between folders; hidden ones are left out.

    A process that only reads the files is sent the tree's `reader`.
    """

    files: list[str]
    folders: set[str]

    @property
    def reader(self) -> Reader:
        """What reads the files, without the lists of them."""
        return Reader(self.where, self.members)


def open_tree(source: Path) -> Tree:
    """The files of the folder or tar `source`. Raises UserError where it is missing or a damaged or compressed tar."""
    if source.is_dir():
        return _folder_tree(source)
    if source.is_file():
        return _tar_tree(source)
    raise UserError(f"{source}: no such folder or tar; set data.source (--from) to where the dataset was downloaded")


def fingerprint_parts(source: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of a source's files: cheap to read, different once the source changes."""
    paths = [source] if source.is_file() else [source / path for path in open_tree(source).files]
    stats = [(path, path.stat()) for path in paths]
    return [(str(path.relative_to(source.parent)), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _folder_tree(where: Path) -> Tree:
    """The files below a folder; links to folders are followed."""
    files: list[str] = []
    folders: set[str] = set()
    for folder, subfolders, names in os.walk(where, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        below = os.path.relpath(folder, where).replace(os.sep, "/")
        prefix = "" if below == "." else f"{below}/"
        folders.update(prefix + name for name in subfolders)
        files.extend(prefix + name for name in names if not name.startswith("."))
    return Tree(where, None, sorted(files), folders)


def _tar_tree(where: Path) -> Tree:
    """The files of a tar, none of which may occur twice."""
    files: dict[str, Member] = {}
    folders: set[str] = set()
    try:
        for member in members(where):
            path = PurePosixPath(member.name)
            if any(part.startswith(".") for part in path.parts):
                continue
            folders.update(str(parent) for parent in path.parents if parent.name)
            if member.is_folder:
                folders.add(str(path))
            elif str(path) in files:
                raise ValueError(f"{member.name} occurs twice")
            else:
                files[str(path)] = member
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    return Tree(where, files, sorted(files), folders)
