"""Files that appear whole or not at all, and the digest that says they stayed so."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; when the block ends, what it wrote is on the disk and then called `path`.

    Where the block fails nothing is left; a killed process leaves a name that starts with a dot.
    """
    partial = path.with_name(f".{path.name}.{platform.node()}-{os.getpid()}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())  # or a rename could outlive the bytes when the power fails
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
