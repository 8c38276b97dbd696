"""A lock on a run directory: two drivers would overwrite each other's results, journals and checkpoints."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.terminal import Show

LOCK = "lock"
LOOK_EVERY_SECONDS = 0.2


@contextmanager
def only_driver(run: Path, show: Show) -> Iterator[None]:
    """Lock the run directory `run` for this process while the block runs. The directory is created if it is missing.

    The lock belongs to this process alone: it ends with the process, even after kill -9, and workers do not inherit it.
    It also keeps out other nodes if the file system shares locks between them (NFS, EFS, Lustre mounted with `flock`).
    If the file system has no locks, the user is warned. Raises UserError if another process holds the lock.
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
            show.notice(f"{run}: cannot be locked ({error.strerror}); make sure that no other moe-dist works in it")
        file.truncate(0)
        file.write(f" (process {os.getpid()} on {socket.gethostname()})")
        file.flush()
        yield


def wait_until_free(run: Path, seconds: float) -> None:
    """Wait until no other process holds the lock of the run directory `run`, at most `seconds`."""
    last = time.monotonic() + seconds
    while (run / LOCK).exists() and time.monotonic() < last:
        with (run / LOCK).open("a+") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except (BlockingIOError, PermissionError):
                time.sleep(LOOK_EVERY_SECONDS)
            except OSError:  # no locks here, as `only_driver` tells the user
                return
