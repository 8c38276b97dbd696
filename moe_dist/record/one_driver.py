"""One driver at a time in a run directory: two would write over each other's steps, journals and checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.terminal import Show

LOCK = "lock"


@contextmanager
def only_driver(run: Path, show: Show) -> Iterator[None]:
    """Hold the run directory `run`, which is made where it is not there, until the block ends or this process does.

    The kernel holds the lock for this process alone: kill -9 frees it, and no forked worker that outlives it keeps it.
    Other nodes are kept out where the file system carries locks between them (NFS, EFS, Lustre mounted with `flock`).
    Raises UserError where another process holds it; where the file system has no locks at all, the user is told.
    """
    run.mkdir(parents=True, exist_ok=True)
    with (run / LOCK).open("a+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(
                f"{run}: another moe-dist{file.read()} is at work in this run; wait until it is done, or end it, and "
                "then go on with --resume"
            ) from None
        except OSError as error:
            show.notice(f"{run}: cannot be locked ({error.strerror}); see to it that no other moe-dist works in it")
        file.truncate(0)
        file.write(f" (process {os.getpid()} on {socket.gethostname()})")
        file.flush()
        yield
