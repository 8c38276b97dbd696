"""A run at a URL: this node works on it in a folder, and the files are kept at the URL.

1. The URL is the run. When the run is opened, the folder is made equal to it: what is not there is no part of the run.
2. A file is pushed when it is whole here, and files in the order in which they were written: the one that says that a
   result is whole (done.json, training.json) is written last, so it arrives last.
3. While the store does not answer, the work goes on and a push is tried again. The run ends when all have arrived.

The driver keeps what it writes; a training's log and checkpoints are kept by the ranks that write them, on any node
(train/store_worker.py). A process keeps only the files that are its own: no two push one file.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_dist.data.storage.store import (
    Stored,
    StoreFailed,
    exists,
    get_file,
    join,
    put_file,
    remove,
    require_store,
    stored_files,
)
from moe_dist.errors import UserError
from moe_dist.files import whole_file
from moe_dist.record.one_driver import LOCK
from moe_dist.record.restarts import ATTEMPTS
from moe_dist.record.sharing import CHECKPOINTS, NEVER_CHANGED
from moe_dist.settings.data import RemoteConfig

PATIENT = RemoteConfig(timeout_seconds=30, retries=12)
"""For what a run cannot go on without: tried for four minutes, which is less than ranks wait for each other."""
ONCE = RemoteConfig(timeout_seconds=30, retries=0)
EVERY_SECONDS = 3.0
"""Seconds between two looks for files that have changed; more where pushing takes long."""
LONGEST_PAUSE_SECONDS = 30.0
LAST_SECONDS = {True: 600.0, False: 20.0}
"""How long the last push is tried: of work that is done; of work that failed or was stopped, where somebody waits."""
LOGS = ("metrics.jsonl", ATTEMPTS)
BOARD = "tensorboard"
"""What rank 0 writes of a training but its checkpoints: files, and a folder."""
CELLS = "cells"
"""The folder of a grid's run directory that holds its cells' run directories."""

Stamp = tuple[int, int]
"""A file's size and time of change in nanoseconds."""


def working_folder(url: str, cache: Path) -> Path:
    """The folder of this node in which a run at `url` is worked on, called as the run; that of a cell is in its grid's.

    cache: the folder of what the node keeps.
    """
    above, name = url.rstrip("/").rsplit("/", 1)
    if above.endswith(f"/{CELLS}"):
        return working_folder(above.removesuffix(f"/{CELLS}"), cache) / CELLS / name
    return cache / "runs" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:16] / name


def of_the_driver(name: str) -> bool:
    """Whether the driver keeps the file `name` of a run, and not a training's ranks."""
    parts = name.split("/")
    return not (len(parts) > 3 and parts[1] == "trainings" and parts[3] in (CHECKPOINTS, BOARD, *LOGS))


def of_a_grid(name: str) -> bool:
    """Whether a grid's driver keeps the file `name` of the grid: each cell keeps its own run directory."""
    parts = name.split("/")
    return parts[0] != CELLS or len(parts) == 2


class Mirror:
    """Keeps those files below `folder` at `url` that are `mine`, by their names with `/` between folders."""

    def __init__(self, folder: Path, url: str, mine: Callable[[str], bool] = of_the_driver) -> None:
        require_store(url)
        self.folder, self.url = folder, url
        self._mine = mine
        self._there: dict[str, Stamp] = {}
        self._pushing = threading.Lock()

    @property
    def holds_files(self) -> bool:
        """Whether a file of the run is here."""
        return bool(self._files())

    def url_of(self, path: Path) -> str:
        """The URL of a file or folder below the mirror's folder."""
        return join(self.url, *path.relative_to(self.folder).parts)

    def pull(self, below: Path | None = None, *, exact: bool = False, without: Collection[str] = ()) -> None:
        """Fetch the files at the URL that are not here or may be others, of the folder `below` alone if given.

        exact: files here that are not at the URL are removed. without: names of folders that are left out.
        Raises UserError where the store fails.
        """
        top = below or self.folder
        prefix = "" if top == self.folder else f"{top.relative_to(self.folder).as_posix()}/"
        found = {prefix + name: file for name, file in stored_files(self.url_of(top).rstrip("/"), PATIENT).items()}
        for name, file in found.items():
            if _is_ours(name, without):
                self._fetch(name, file)
        if exact:
            for name in self._files().keys() - found.keys():
                (self.folder / name).unlink()

    def fetch(self, path: Path) -> None:
        """Fetch one file, if it is at the URL. Raises UserError where the store fails."""
        name = path.relative_to(self.folder).as_posix()
        if exists(join(self.url, name), PATIENT):
            with whole_file(path, lasting=False) as partial:
                get_file(join(self.url, name), partial, PATIENT)
            if self._mine(name) and (stamp := _stamp(path)):
                self._there[name] = stamp

    def push(self, remote: RemoteConfig = PATIENT) -> None:
        """Bring to the URL what has changed here, in the order of writing, and remove there what is gone here.

        Raises StoreFailed where the store fails.
        """
        with self._pushing:
            here = {name: stamp for name, stamp in self._files().items() if self._mine(name)}
            changed = [name for name, stamp in here.items() if self._there.get(name) != stamp]
            for name in sorted(changed, key=lambda name: here[name][1]):
                try:
                    put_file(self.folder / name, join(self.url, name), remote)
                except StoreFailed:
                    if (self.folder / name).exists():
                        raise
                    continue  # removed meanwhile
                self._there[name] = here[name]
            for name in self._there.keys() - here.keys():
                remove(join(self.url, name), remote)
                del self._there[name]

    @contextmanager
    def keeping(self, tell: Callable[[str], None]) -> Iterator[None]:
        """Push every few seconds while the block runs, and the rest when it ends. `tell` is given a failure's sentence.

        Raises UserError where the rest cannot be pushed, unless the block has failed itself.
        """
        stop, done = threading.Event(), False
        thread = threading.Thread(target=self._keep, args=(stop, tell), daemon=True)
        thread.start()
        try:
            yield
            done = True
        finally:
            stop.set()
            thread.join()
            try:
                self._push_the_rest(LAST_SECONDS[done], tell)
            except UserError as error:
                if done:
                    raise
                tell(str(error))

    def _keep(self, stop: threading.Event, tell: Callable[[str], None]) -> None:
        """Push until told to stop, with longer pauses while the store fails."""
        pause, failed = EVERY_SECONDS, False
        while not stop.wait(pause):
            began = time.monotonic()
            try:
                self.push(ONCE)
                pause, failed = max(EVERY_SECONDS, 10 * (time.monotonic() - began)), False
            except (UserError, OSError) as error:
                if not failed:
                    tell(f"{error}; the work goes on, and it is tried again")
                pause, failed = min(2 * pause, LONGEST_PAUSE_SECONDS), True

    def _push_the_rest(self, seconds: float, tell: Callable[[str], None]) -> None:
        """Push, and try again for so many seconds."""
        last, pause = time.monotonic() + seconds, 1.0
        while True:
            try:
                self.push(ONCE)
                return
            except StoreFailed as error:
                if error.lasting or time.monotonic() + pause > last:
                    raise UserError(
                        f"{error}; some files of the run are in {self.folder} alone, and --resume makes them again"
                    ) from None
                if pause == 1.0:
                    tell(f"{error}; tried again for {seconds:g} s")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _fetch(self, name: str, file: Stored) -> None:
        """Fetch a file, unless it is here: pushed or fetched by this process, or of its size and never changed.

        It gets the time at which it was written: by such times a killed start's length is told.
        """
        path = self.folder / name
        here = _stamp(path)
        if here is None or here[0] != file.size or (path.suffix not in NEVER_CHANGED and self._there.get(name) != here):
            with whole_file(path, lasting=False) as partial:
                get_file(join(self.url, name), partial, PATIENT)
                if file.written is not None:
                    os.utime(partial, (file.written, file.written))
        stamp = _stamp(path)
        if stamp is not None and self._mine(name):
            self._there[name] = stamp

    def _files(self) -> dict[str, Stamp]:
        """The files of the folder but hidden ones (which are not whole yet) and the lock, with their stamps."""
        found = {}
        for parent, folders, names in os.walk(self.folder):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                path = Path(parent, name)
                if not name.startswith(".") and name != LOCK and (stamp := _stamp(path)) is not None:
                    found[path.relative_to(self.folder).as_posix()] = stamp
        return found


def _is_ours(name: str, without: Collection[str]) -> bool:
    """Whether a file at the URL is a run's, whose names do not begin with a dot, and is not left out."""
    return not any(part.startswith(".") or part in without for part in name.split("/"))


def _stamp(path: Path) -> Stamp | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_mtime_ns
