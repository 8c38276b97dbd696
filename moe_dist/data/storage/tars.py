"""Reading an uncompressed tar strictly: every member's name and place, and an error where it is damaged."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
_TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Member:
    """One file or folder of a tar: its name, and where its `size` bytes start in the tar file."""

    name: str
    offset: int
    size: int
    is_folder: bool = False


def members(path: Path) -> Iterator[Member]:
    """The members of the tar at `path` in order, read without extracting anything.

    Raises ValueError, after the members before it, at the first thing that a tar of plain files and folders does not
    hold: a link or device, a member cut short, or anything but zeros after the last member (where `tarfile` would stop
    in silence). A compressed file is not a tar here.
    """
    end = 0
    size = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                if not (info.isreg() or info.isdir()):
                    raise ValueError(f"{info.name} is neither a file nor a folder")
                if info.size < 0:  # which a header can say, and which leads back to members that were read
                    raise ValueError(f"damaged: the size of {info.name} is {info.size}")
                end = info.offset_data + -(-info.size // BLOCK) * BLOCK
                if end > size:
                    raise ValueError(f"cut short inside {info.name}")
                yield Member(info.name.removeprefix("./"), info.offset_data, info.size, info.isdir())
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has read
    except (tarfile.TarError, OverflowError, MemoryError, RecursionError) as error:  # it believes any length it reads
        raise ValueError(f"not an uncompressed tar, or damaged ({error})") from None
    _require_end(path, end)


def member_name(header: bytes, offset: int) -> str:
    """The name in a member's `header`; where that is damaged "byte 512", the `offset` at which its content begins."""
    try:
        return tarfile.TarInfo.frombuf(header, "ascii", "replace").name
    except tarfile.HeaderError:  # type: ignore[attr-defined]
        return f"byte {offset}"


def _require_end(path: Path, end: int) -> None:
    """Raise ValueError unless the tar at `path` ends, after byte `end`, in at least two blocks of zeros."""
    with path.open("rb") as file:
        file.seek(end)
        tail_bytes = 0
        while tail := file.read(_TAIL_BYTES):
            tail_bytes += len(tail)
            if tail.strip(b"\0"):
                raise ValueError(f"damaged after byte {end}: a member's header cannot be read")
    if tail_bytes < 2 * BLOCK:
        raise ValueError(f"cut short after byte {end}")
