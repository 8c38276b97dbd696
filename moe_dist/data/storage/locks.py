"""Locks between the processes of a node: files that the kernel frees with their process, kill -9 included.

Whoever holds a lock may remove its file, or all of its folder, before letting go. So a process that gets a lock looks
whether its file is still the one of that name; if not, somebody else may hold that one, and it asks for it anew.
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
"""What file systems without locks answer."""


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`, made with its folder where it is missing, against all other processes and threads.

    wait: False raises BlockingIOError where another holds it. Raises OSError where the file system has no locks.
    """
    with _taken(path, wait) as file:
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process forked meanwhile has the file open, too


@contextmanager
def in_turn(path: Path) -> Iterator[None]:
    """Let one process or thread at a time into the block; the lock file `path` is gone when nobody waits any more.

    Where the file system has no locks all are let in together.
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
    """Whether somebody holds the lock file `path`."""
    try:
        with locked(path, wait=False):
            return False
    except BlockingIOError:
        return True


def _taken(path: Path, wait: bool) -> BinaryIO:
    """The file that has the name `path`, open and locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError), ExitStack() as opened:  # whoever held the lock took the folder with it
            file = opened.enter_context(path.open("ab"))
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                opened.pop_all()
                return file
