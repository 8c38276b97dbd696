"""Locks between the processes of a node: files that the kernel unlocks when their process ends, also by kill -9.

The holder of a lock may remove its file, or the whole folder, before letting go. So a process that gets a lock checks
that its file still has that name; if not, another process may hold the new file, and it asks for the lock again.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL)
"""Errors of file systems without locks."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; no other process or thread holds it then.

    The file and its folder are made where they are missing. wait: False raises BlockingIOError where another holds the
    lock. Raises OSError where the file system has no locks.
    """
    with _taken(path, wait) as file:
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open, too


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Run the block in one process or thread at a time; the lock file `path` is gone when none waits any more.

    Where the file system has no locks, all run it together.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(path))
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_locked(path: Path) -> bool:
    """Whether a process or thread holds the lock file `path`."""
    try:
        with locked(path, wait=False):
            return False
    except BlockingIOError:
        return True


def _taken(path: Path, wait: bool) -> BinaryIO:
    """The file that is called `path`, open and locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as opened:  # whoever held the lock took the folder with it
            file = opened.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                opened.pop_all()
                return file
