"""Compressed archives: a .zip or a compressed tar becomes a plain tar in the cache, once, which is then read in place.

Nothing is unpacked to files: no member's name is ever used as a path, and a nested archive stays a file like any other.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import shlex
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_dist.data.storage.folders import shown_name
from moe_dist.data.storage.locks import in_turn
from moe_dist.data.storage.tars import BLOCK, is_header, members
from moe_dist.errors import UserError
from moe_dist.files import whole_file

UNPACKED = "unpacked"
"""The folder in the cache; it can be removed once shards are built."""
_TARS: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""How a compressed tar begins, and what reads it."""
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_OTHERS = {
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard, which is not read", "unpack it by `zstd -d {0}`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive, which is not read", "unpack it by `7z x {0} -oFOLDER`"),
    b"Rar!\x1a\x07": ("a RAR archive, which is not read", "unpack it by `7z x {0} -oFOLDER`"),
    b"version https://git-lfs": ("a Git LFS pointer, not the archive", "fetch it by `git lfs pull`"),
    b"<!": ("a web page, not an archive", "download it again, logged in where that is needed"),
    b"<html": ("a web page, not an archive", "download it again, logged in where that is needed"),
}
_LONGEST_MAGIC = max(map(len, _OTHERS))
_CHUNK = 1 << 20
_MOST_TIMES_LARGER = 100
_ALWAYS_ALLOWED = 1 << 30
"""Bytes that any archive may have unpacked; beyond them it has at most _MOST_TIMES_LARGER times its file's size."""
_ENCRYPTED, _IN_UTF8 = 0x1, 0x800
"""Flags of a member of a .zip."""
_WINDOWS = (0, 10)
"""The systems by which a .zip says that it was made on Windows."""
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError)
OnUnpack = Callable[[str], None]
"""Called with a sentence on the size of an archive before it is unpacked."""


def plain_tar(source: Path, cache: Path, tell: OnUnpack) -> Path:
    """The file `source` itself where it is a plain tar, else the tar in `cache` of what a compressed archive holds.

    Raises UserError for what is no archive or one that is not read, with the command that unpacks it; for one that is
    damaged, encrypted, many times larger than its file, or larger than the space in `cache`; and for members that lie
    outside the archive or are neither files nor folders.
    """
    start = _beginning(source)
    pack = None if is_header(start) else _packer(source, start)
    if pack is None:
        return source
    found = source.stat()
    key = hashlib.sha256(f"{source.resolve()} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache / UNPACKED / f"{source.name.partition('.')[0]}-{key}.tar"
    with _as_sentences(source, target.parent), in_turn(target.with_suffix(".lock")):
        if not target.exists():
            with whole_file(target, lasting=False) as partial:
                pack(source, partial, tell)
                _require_whole(source, partial)
    return target


def _require_whole(source: Path, tar: Path) -> None:
    """Raise UserError where what was unpacked is not a whole tar, before it is kept."""
    try:
        for _ in members(tar, source):
            pass
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def _beginning(source: Path) -> bytes:
    """The first block of a file. Raises UserError where it cannot be read."""
    try:
        with source.open("rb") as file:
            return file.read(BLOCK)
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def _packer(source: Path, start: bytes) -> Callable[[Path, Path, OnUnpack], None] | None:
    """What turns the archive that begins with `start` into a tar; None where only the reader of tars can tell."""
    if not start:
        raise UserError(f"{source}: an empty file; download it again")
    if source.with_suffix(".z01").exists():
        whole = shlex.quote(f"{source.stem}-whole.zip")
        raise UserError(
            f"{source}: the last part of a .zip in several; join them by `zip -s 0 {shlex.quote(str(source))} --out "
            f"{whole}`"
        )
    if start.startswith(tuple(_TARS)):
        return _decompress
    lowered = start[:_LONGEST_MAGIC].lower()
    for magic, (what, advice) in _OTHERS.items():
        if start.startswith(magic) or lowered.startswith(magic):
            raise UserError(f"{source}: {what}; {advice.format(shlex.quote(str(source)))}")
    # Programs that unpack themselves have a .zip at their end.
    return _pack_zip if start.startswith(_ZIP) or zipfile.is_zipfile(source) else None


@contextmanager
def _as_sentences(source: Path, folder: Path) -> Iterator[None]:
    """Raise UserError for a damaged archive, and for a cache that cannot take it."""
    try:
        yield
    except _DAMAGED as error:
        raise UserError(f"{source}: {str(error) or 'cut short'}; download or pack it again") from None
    except NotImplementedError as error:
        raise UserError(
            f"{source}: compressed in a way that is not read ({error}); unpack it by "
            f"`7z x {shlex.quote(str(source))} -oFOLDER`"
        ) from None
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile) or error.errno is None:
            raise UserError(f"{source}: damaged ({error}); download or pack it again") from None
        raise UserError(
            f"{folder}: cannot unpack {source} there ({error.strerror}); mend that, or name another folder in "
            "MOE_DIST_CACHE"
        ) from None


def _decompress(source: Path, target: Path, tell: OnUnpack) -> None:
    """Write the tar that `source` holds compressed. Raises UserError where it holds something else."""
    packed = source.stat().st_size
    _require_space(source, target.parent, packed)
    tell(f"{source}: {in_bytes(packed)} compressed, is unpacked once into {target.parent}")
    beginning = _beginning(source)
    opener = next(opener for magic, opener in _TARS.items() if beginning.startswith(magic))
    with opener(source) as unpacked, target.open("wb") as file:
        start = unpacked.read(BLOCK)
        if not is_header(start):
            raise UserError(f"{source}: compressed, but not a tar; set data.source (--from) to the folder it lies in")
        file.write(start)
        while chunk := unpacked.read(_CHUNK):
            _require_no_bomb(source, packed, file.tell() + len(chunk))
            file.write(chunk)


def _pack_zip(source: Path, target: Path, tell: OnUnpack) -> None:
    """Write a tar of the members of a .zip. Raises UserError for members that are not plain files and folders."""
    packed = source.stat().st_size
    with zipfile.ZipFile(source) as archive:
        infos = archive.infolist()
        unpacked = sum(info.file_size for info in infos)
        _require_no_bomb(source, packed, unpacked)
        _require_space(source, target.parent, unpacked)
        tell(
            f"{source}: {in_bytes(packed)}, is unpacked once into {target.parent}, where it takes {in_bytes(unpacked)}"
        )
        with tarfile.open(target, "w", format=tarfile.PAX_FORMAT, encoding="utf-8") as tar:
            for info in infos:
                _require_plain(source, info)
                _add(tar, archive, info)


def _require_plain(source: Path, info: zipfile.ZipInfo) -> None:
    """Raise UserError where a member of a .zip is encrypted, or neither a file nor a folder."""
    name = shown_name(_zip_name(info))
    if info.flag_bits & _ENCRYPTED:
        raise UserError(f"{source}: {name} is encrypted; unpack the archive with its password")
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(f"{source}: {name} is neither a file nor a folder; pack the archive again without links")


def _add(tar: tarfile.TarFile, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Add a member of a .zip to `tar`."""
    name = _zip_name(info)
    member = tarfile.TarInfo(name.rstrip("/"))
    if info.is_dir() or name.endswith("/"):
        member.type = tarfile.DIRTYPE
        tar.addfile(member)
        return
    member.size = info.file_size
    with archive.open(info) as content:
        tar.addfile(member, content)


def _zip_name(info: zipfile.ZipInfo) -> str:
    r"""A member's name with `/` between folders: `\` on archives of Windows, whose programs may write either.

    A name without the mark of UTF-8 is taken for UTF-8 where it can be, as macOS writes it, and else left with bytes
    that are not UTF-8, which whoever reads the tar refuses.
    """
    name = info.orig_filename
    if not info.flag_bits & _IN_UTF8:
        name = name.encode("cp437").decode("utf-8", "surrogateescape")
    return name.replace("\\", "/") if info.create_system in _WINDOWS else name


def _require_no_bomb(source: Path, packed: int, unpacked: int) -> None:
    """Raise UserError where an archive is so much larger than its file that it must be an attack or a mistake."""
    if unpacked > max(_ALWAYS_ALLOWED, _MOST_TIMES_LARGER * packed):
        raise UserError(
            f"{source}: has {in_bytes(packed)} and would take {in_bytes(unpacked)} or more, over {_MOST_TIMES_LARGER} "
            "times as much; if that is meant, unpack it yourself"
        )


def _require_space(source: Path, folder: Path, size: int) -> None:
    """Raise UserError where the disk of `folder` has not `size` bytes to spare."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: {source} takes {in_bytes(size)} there, and {in_bytes(free)} are free; free space, or name "
            "another folder in MOE_DIST_CACHE"
        )


def in_bytes(size: int) -> str:
    """A size in words: 12 bytes, 3.4 MB."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} bytes"
