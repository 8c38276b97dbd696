"""Reading an uncompressed tar strictly: every member's name and place, and an error where it is damaged."""

from __future__ import annotations

import shlex
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
_AGAIN = "download or pack it again"
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One file or folder of a tar: its name, and where its `size` bytes start in the tar file.

    link: the name of the file that this is a hard link to, whose bytes are not repeated; "" for any other.
    """

    name: str
    offset: int
    size: int
    is_folder: bool = False
    link: str = ""


def members(path: Path, source: Path | None = None) -> Iterator[Member]:
    """The members of the tar at `path` in order, read without extracting anything.

    source: the file that a message may tell to unpack, where that is another, which holds this tar compressed.
    Raises ValueError, after the members before it, at the first thing that a tar of plain files and folders does not
    hold: a symbolic link or device, a member cut short, or anything but zeros after the last member (where `tarfile`
    would stop in silence). A compressed file is not a tar here. Names are read as UTF-8, whatever the locale.
    """
    end = 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:", encoding="utf-8") as tar:
            for info in tar:
                _require_plain(info)
                if info.size < 0:  # which a header can say, and which leads back to members that were read
                    raise ValueError(f"damaged: the size of {info.name} is {info.size}; {_AGAIN}")
                content = 0 if info.islnk() else info.size
                end = info.offset_data + -(-content // BLOCK) * BLOCK
                if end > size:
                    raise ValueError(f"cut short inside {info.name}; {_AGAIN}")
                link = info.linkname.removeprefix("./") if info.islnk() else ""
                yield Member(info.name.removeprefix("./"), info.offset_data, content, info.isdir(), link)
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has read
    except (tarfile.TarError, OverflowError, MemoryError, RecursionError) as error:  # it believes any length it reads
        raise ValueError(f"not a tar, or damaged ({error}); {_AGAIN}") from None
    _require_end(path, end, source or path)


def member_name(header: bytes, offset: int) -> str:
    """The name in a member's `header`; where that is damaged "byte 512", the `offset` at which its content begins."""
    try:
        return tarfile.TarInfo.frombuf(header, "ascii", "replace").name
    except tarfile.HeaderError:  # type: ignore[attr-defined]
        return f"byte {offset}"


def is_header(block: bytes) -> bool:
    """Whether `block` is the header of a tar's member."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):  # type: ignore[attr-defined]
        return False
    return True


def _require_plain(info: tarfile.TarInfo) -> None:
    """Raise ValueError unless a member is a folder, or a file or hard link whose bytes lie together."""
    if info.issparse():
        raise ValueError(f"{info.name} is a sparse file; pack the tar again without --sparse")
    if info.issym():
        raise ValueError(
            f"{info.name} is neither a file nor a folder, but a link to {info.linkname}; pack the tar again with "
            "--dereference"
        )
    if not (info.isreg() or info.isdir() or info.islnk()):
        raise ValueError(f"{info.name} is neither a file nor a folder")


def _require_end(path: Path, end: int, source: Path) -> None:
    """Raise ValueError unless the tar at `path` ends, after byte `end`, in at least two blocks of zeros."""
    with path.open("rb") as file:
        file.seek(end)
        tail_bytes = 0
        while tail := file.read(_TAIL_BYTES):
            if tail.strip(b"\0"):
                zeros = (len(tail) - len(tail.lstrip(b"\0"))) // BLOCK * BLOCK
                if tail_bytes + zeros >= 2 * BLOCK and is_header(tail[zeros : zeros + BLOCK]):
                    raise ValueError(
                        "two tars joined, of which only the first would be read; unpack both by "
                        f"`tar --ignore-zeros -xf {shlex.quote(str(source))} -C FOLDER` and name that folder"
                    )
                raise ValueError(f"damaged after byte {end}: a member's header cannot be read; {_AGAIN}")
            tail_bytes += len(tail)
    if tail_bytes < 2 * BLOCK:
        raise ValueError(f"cut short after byte {end}; {_AGAIN}")
