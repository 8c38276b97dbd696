"""How far a task is, told through a small file that any node can write and the driver reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from moe_dist.files import write_text

WRITE_EVERY_SECONDS = 0.25


class ProgressFile:
    """Called as progress(done, total); writes at most a few times a second."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, done: float, total: float) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + WRITE_EVERY_SECONDS
        if not self._path.parent.is_dir():  # nobody reads it any more
            return
        write_text(self._path, json.dumps([done, total]), lasting=False)


@contextlib.contextmanager
def progress_folder(run: Path) -> Iterator[Path]:
    """An empty folder inside the run directory, which every node reaches, for as long as tasks report into it."""
    folder = run / ".progress"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read_progress(folder: Path, items: int) -> tuple[float, float, str]:
    """(done, total, note) over `items` tasks that write <folder>/<item>.json; each task counts as one."""
    done = 0.0
    for path in folder.glob("*.json"):
        part, whole = json.loads(path.read_text())
        done += part / whole
    return done, items, f"{int(done)}/{items}" if items > 1 else ""
