"""Walking a folder strictly: what is there is listed or refused, never left out; and which names are nobody's data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from moe_dist.errors import UserError

_NOBODYS = {
    "__macosx",
    "thumbs.db",
    "ehthumbs.db",
    "desktop.ini",
    "icon\r",
    "lost+found",
    "system volume information",
    "$recycle.bin",
    "#recycle",
    "@eadir",
}
"""Names, in lower case, that Windows, macOS, disks and network shares put beside files."""
_MARKS = (":zone.identifier", ":encryptable")
"""How the names end of files into which other systems turn the marks that Windows puts on a file."""
FolderId = tuple[int, int]
"""The device and inode of a folder, which are the same under all of its names."""


@dataclass
class Walked:
    """The files and folders below a folder, by their path with `/` between folders.

    loops: (link, the folder above it that it leads back to), which are not followed; twins: (folder, another path at
    which the same folder was found before).
    """

    files: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    loops: list[tuple[str, str]] = field(default_factory=list)
    twins: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Opened:
    """A folder to list: its path below the top ("" for the top), and the path of each folder it lies in by its id."""

    path: str
    above: dict[FolderId, str]


def is_nobodys(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or kept by an operating system or a share for itself."""
    return name.startswith(".") or name.lower() in _NOBODYS or name.lower().endswith(_MARKS)


def shown_name(name: str) -> str:
    r"""`name` for messages, in which bytes that are not UTF-8 are escaped: caf\xe9."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def require_utf8(where: Path, path: str) -> None:
    """Raise UserError where the name `path` below `where` is not UTF-8: no report could show it."""
    if shown_name(path) != path:
        raise UserError(
            f"{shown_name(str(where))}: {shown_name(path)}: the name is not UTF-8; rename it "
            "(`convmv -r --notest -f latin1 -t utf8 FOLDER` does, where it is Latin-1)"
        )


def walk_folder(where: Path) -> Walked:
    """All that is below `where`, links followed, except what is nobody's data.

    Raises UserError, which names it, for a folder that cannot be listed, a link to nothing, anything that is neither a
    file nor a folder, and a name that is not UTF-8.
    """
    walked = Walked()
    first_path: dict[FolderId, str] = {}
    waiting = [_Opened("", {})]
    while waiting:
        folder = waiting.pop()
        inside = {**folder.above, _folder_id(where, folder.path): folder.path}
        for entry in _entries(where, folder.path):
            path = f"{folder.path}/{entry.name}" if folder.path else entry.name
            require_utf8(where, path)
            if not _is_folder(where, path, entry):
                walked.files.append(path)
            elif (identity := _folder_id(where, path)) in inside:
                walked.loops.append((path, inside[identity]))
            else:
                if (first := first_path.setdefault(identity, path)) != path:
                    walked.twins.append((path, first))
                walked.folders.add(path)
                waiting.append(_Opened(path, inside))
    return walked


def _entries(where: Path, folder: str) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder and is somebody's data. Raises UserError where it cannot be listed."""
    try:
        with os.scandir(where / folder) as entries:
            yield from sorted((entry for entry in entries if not is_nobodys(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise _cannot("list", where, folder, error) from None


def _is_folder(where: Path, path: str, entry: os.DirEntry[str]) -> bool:
    """Whether `entry` is a folder rather than a file. Raises UserError where it is neither."""
    try:
        if entry.is_dir():
            return True
        if entry.is_file():
            return False
    except OSError as error:
        raise _cannot("look at", where, path, error) from None
    if entry.is_symlink():
        raise UserError(
            f"{where}: {path}: a link to nothing ({shown_name(os.readlink(entry.path))}); bring back what it leads to, "
            "or remove the link"
        )
    raise UserError(f"{where}: {path}: neither a file nor a folder (a pipe, socket or device); remove it")


def _folder_id(where: Path, folder: str) -> FolderId:
    try:
        found = (where / folder).stat()
    except OSError as error:
        raise _cannot("look at", where, folder, error) from None
    return found.st_dev, found.st_ino


def _cannot(what: str, where: Path, path: str, error: OSError) -> UserError:
    return UserError(
        f"{where}: cannot {what} {path or 'it'} ({error.strerror}); what is in it would be left out: make it readable, "
        "or move it away"
    )
