"""Writes files completely or not at all, and reads files that a power failure may have emptied."""

from __future__ import annotations

import codecs
import errno
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError

NOT_WRITABLE = (PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError, FileNotFoundError)
"""What the system answers where a path is not one to write to: through a file, into /proc, or into a foreign folder."""
_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def whole_file(path: Path, *, lasting: bool = True) -> Iterator[Path]:
    """Give the block a temporary file beside `path`, and rename it to `path` when the block ends.

    lasting: wait for the disk, so that a power failure after the block loses nothing; not needed for progress and
    pictures. If the block fails, no file is left; a killed process leaves one whose name starts with a dot. The
    temporary name is random, because processes of several nodes may write to one folder, which is created if missing.
    Raises UserError where nothing may be written.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        if lasting:
            flush_to_disk(partial)  # otherwise the new name could be on the disk before the content
        os.replace(partial, path)
        if lasting:
            flush_to_disk(path.parent)
    except NOT_WRITABLE as error:
        if error.filename is None or Path(error.filename) not in (partial, path, *path.parents):
            raise  # about another file, which the block reads
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
    finally:
        with suppress(OSError):  # it is the first error that counts
            partial.unlink(missing_ok=True)


def require_writable(folder: Path, where: str) -> None:
    """Raise UserError, which starts with `where`, unless files can be written into `folder`, which need not exist.

    Nothing is left: a file without a name is opened in the folder, or in the first above it that exists.
    """
    existing = folder.absolute()
    try:
        str(existing).encode()
        while not os.path.lexists(existing):
            existing.exists()  # which raises for a name that is too long, as lexists does not
            existing = existing.parent
        if not existing.is_dir():
            raise UserError(f"{where}: {existing} is not a folder; choose another place")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except UnicodeEncodeError:
        raise UserError(f"{where}: {existing} is not UTF-8, and no report could name it; rename it") from None
    except OSError as error:
        raise UserError(
            f"{where}: nothing can be written into {existing} ({error.strerror}); choose another place, or make it "
            "writable"
        ) from None


def write_text(path: Path, text: str, *, lasting: bool = True) -> None:
    """Write `text` to `path` in UTF-8, by `whole_file`."""
    with whole_file(path, lasting=lasting) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, *, lasting: bool = True) -> None:
    """Write `content` to `path` as JSON, by `whole_file`."""
    write_text(path, json.dumps(content, indent=1) + "\n", lasting=lasting)


def read_json(path: Path) -> Any | None:
    """The content of the JSON file `path`; None if it is missing or damaged, in which case it is written again."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line, without a last one that a killed writer cut short; none if missing."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def read_text(path: Path, where: str, what: str) -> str:
    r"""The text of a `what` that the user names, without a byte-order mark, every line ending with \n.

    Raises UserError, which starts with `where`, if there is none, it cannot be read, or it is not in UTF-8.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise UserError(f"{where}: no such {what}") from None
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        found = f"line {line} holds the byte 0x{content[error.start]:02x}"
    else:
        if "\0" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n")
        found = "it holds zero bytes"
    if content.startswith(_UTF_16) or b"\0" in content[:4]:
        found = "it looks like UTF-16"
    raise UserError(f"{where}: not a text file in UTF-8 ({found}); save it as UTF-8, or name a {what}")


def flush_to_disk(path: Path) -> None:
    """Wait until the file or folder `path` is on the disk, if the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems do not support it for folders
            raise
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
