"""The files of a downloaded dataset, which a reader finds alike in a folder, a tar, and a compressed archive."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_dist.data.storage.archives import plain_tar
from moe_dist.data.storage.folders import is_nobodys, require_utf8, shown_name, walk_folder
from moe_dist.data.storage.tars import Member, members
from moe_dist.errors import UserError
from moe_dist.places import cache_folder
from moe_dist.terminal import Show, console

_DRIVE = re.compile(r"[A-Za-z]:/")


@dataclass(frozen=True)
class Reader:
    """Reads files by their path below the source `where`; it holds nothing open and can be pickled.

    tar, members: the tar that is read in place (the source, or what was unpacked of it), and where its files lie in it;
    None for a folder.
    """

    where: Path
    tar: Path | None
    members: Mapping[str, Member] | None

    def read(self, path: str) -> bytes:
        """The bytes of the file `path`. Raises UserError where it cannot be read."""
        try:
            if self.tar is None or self.members is None:
                return (self.where / path).read_bytes()
            member = self.members[path]
            with self.tar.open("rb") as file:
                file.seek(member.offset)
                return file.read(member.size)
        except OSError as error:
            raise UserError(f"{self.where}: {path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Tree(Reader):
    """A source's files, sorted, and folders, by their path below it with `/` between folders.

    What is hidden or kept by an operating system for itself is left out. twins: (folder, another path of the same
    folder), where a link leads to a folder that is also elsewhere in the source. A process that only reads the files is
    sent the tree's `reader`.
    """

    files: list[str]
    folders: set[str]
    twins: Sequence[tuple[str, str]] = ()

    @property
    def reader(self) -> Reader:
        """What reads the files, without the lists of them."""
        return Reader(self.where, self.tar, self.members)


def open_tree(source: Path) -> Tree:
    """The files of the folder, tar, .zip or compressed tar `source`; the last two are unpacked once into the cache.

    A link that leads back to a folder above it is passed over and told. Raises UserError where the source is missing or
    damaged, holds what cannot be read, or a name that is not UTF-8.
    """
    return _folder_tree(source) if _is_folder(source) else _tar_tree(source)


def text_of(data: bytes) -> str:
    """The text of a list or table: UTF-8, or UTF-16 where it begins with the mark that Windows' programs put there.

    Raises UnicodeDecodeError.
    """
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and len(data) > len(codecs.BOM_UTF16)
    return data.decode("utf-16" if marked else "utf-8-sig")


def fingerprint_parts(source: Path) -> list[tuple[str, int, int]]:
    """(path, bytes, time of change) of a source's files: cheap to read, different once the source changes.

    Raises UserError where the source is missing or cannot be looked through.
    """
    paths = [source / path for path in walk_folder(source).files] if _is_folder(source) else [source]
    try:
        stats = [(path, path.stat()) for path in paths]
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be looked at ({error.strerror}); is it being changed?") from None
    return [(str(path.relative_to(source.parent)), stat.st_size, stat.st_mtime_ns) for path, stat in stats]


def _is_folder(source: Path) -> bool:
    """Whether the source is a folder rather than a file. Raises UserError where it is neither, or named in no UTF-8."""
    if shown_name(str(source)) != str(source):
        raise UserError(f"{shown_name(str(source))}: the name is not UTF-8; rename it, or name it by a link")
    try:
        if source.is_dir():
            return True
        if source.is_file():
            return False
    except OSError as error:
        raise UserError(f"{source}: cannot be looked at ({error.strerror}); make it readable") from None
    raise UserError(f"{source}: no such folder or tar; set data.source (--from) to where the dataset was downloaded")


def _folder_tree(where: Path) -> Tree:
    """The files below a folder; links to folders are followed."""
    walked = walk_folder(where)
    for link, above in walked.loops:
        Show(console).notice(f"{where}: {link} leads back to {above or 'the top'}, in which it lies; it is passed over")
    return Tree(where, None, None, sorted(walked.files), walked.folders, walked.twins)


def _tar_tree(where: Path) -> Tree:
    """The files of a tar or compressed archive, none of which may occur twice."""
    tar = plain_tar(where, cache_folder(), Show(console).notice)
    files: dict[str, Member] = {}
    folders: set[str] = set()
    by_name: dict[str, Member] = {}
    try:
        for member in members(tar, where):
            path = _path_inside(where, member)
            if not member.is_folder:
                member = by_name[str(path)] = _linked(member, by_name)
            if not path.parts or any(is_nobodys(part) for part in path.parts):
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
    return Tree(where, tar, files, sorted(files), folders)


def _path_inside(where: Path, member: Member) -> PurePosixPath:
    """A member's path. Raises ValueError where it leads out of the archive, UserError where it is not UTF-8."""
    require_utf8(where, member.name)
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or _DRIVE.match(member.name):
        raise ValueError(f"{member.name} lies outside the archive; pack it again with relative names")
    return path


def _linked(member: Member, earlier: Mapping[str, Member]) -> Member:
    """A file of a tar; for a hard link, the bytes of the file that it names. Raises ValueError where there is none."""
    if not member.link:
        return member
    named = earlier.get(str(PurePosixPath(member.link)))
    if named is None:
        raise ValueError(f"{member.name} is a hard link to {member.link}, which is no file before it")
    return Member(member.name, named.offset, named.size)
