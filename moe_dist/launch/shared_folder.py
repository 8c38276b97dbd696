"""Whether the machines of a cluster see one and the same folder: one leaves a file there, and the others look for it.

That a folder of this name can be written to on each machine is not enough: it may be one on each machine's own disk.
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SEEN_SECONDS = 10.0
"""How long a file may take to be seen on another machine; NFS keeps lists of folders for some seconds."""
LOOK_SECONDS = 0.2


@contextmanager
def witness_in(folder: Path) -> Iterator[Path]:
    """Give the block an empty file in `folder`, or in the first above it that exists, and remove it afterwards."""
    existing = folder.absolute()
    while not existing.is_dir():
        existing = existing.parent
    witness = existing / f".moe-dist-{secrets.token_hex(8)}"
    try:
        witness.touch(exist_ok=False)
        yield witness
    finally:
        witness.unlink(missing_ok=True)


def what_is_wrong(witnesses: Sequence[Path]) -> list[str]:
    """On another machine: for each witness why its folder is not shared with this machine; empty if it is."""
    return [_wrong_with(witness) for witness in witnesses]


def _wrong_with(witness: Path) -> str:
    folder = witness.parent
    if not folder.is_dir():
        return f"has no folder {folder}"
    last_look = time.monotonic() + SEEN_SECONDS
    while not witness.exists():
        if time.monotonic() > last_look:
            return f"has a folder {folder} of its own, which is not the head's"
        time.sleep(LOOK_SECONDS)
    try:
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"cannot write into {folder} ({os.strerror(error.errno or 0)})"
