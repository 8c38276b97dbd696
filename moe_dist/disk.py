"""Errors of a disk (full, read-only and others, by the system's codes) as sentences for the user."""

from __future__ import annotations

import errno
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moe_dist.errors import DiskError, UserError

GO_ON = "go on with --resume"
_FREE = "free space there and"
_REASONS = {
    errno.ENOSPC: ("the disk is full", _FREE),
    errno.EDQUOT: ("the disk quota is used up", _FREE),
    errno.EFBIG: ("the file system takes no file so large", "choose another and"),
    errno.EROFS: ("the file system is read-only", "make it writable and"),
    errno.EIO: ("the disk fails", "repair it and"),
}
_RUST = re.compile(r"\(os error (\d+)\)")
"""Matches the system's code in the message of a SafetensorError, which is not an OSError."""


@contextmanager
def raising_disk_errors(folder: Path | None, what: str, go_on: str = GO_ON) -> Iterator[None]:
    """Raise DiskError if an error of the disk ends the block, which writes `what` into `folder` (None: not known).

    An OSError names its file if opening failed, but not if writing did. So the sentence names `folder`, or the folder
    of a named file elsewhere, as in a cache. Threads do not print such errors, because the block raises them again.
    """
    printing = threading.excepthook
    threading.excepthook = lambda about: None if _code(about.exc_value) else printing(about)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        code = _code(error)
        if code is None:
            raise
        reason, mend = _REASONS[code]
        place = _place(error, folder)
        where = f"{place}: " if place else ""
        raise DiskError(f"{where}{reason}, so {what} could not be written; {mend} {go_on}") from error
    finally:
        threading.excepthook = printing


def _code(error: BaseException | None) -> int | None:
    """The system's code of a disk's error, in `error` or an error that caused it; None if there is no such code."""
    while error is not None:
        found = _RUST.search(str(error)) if type(error).__name__ == "SafetensorError" else None
        code = int(found[1]) if found else getattr(error, "errno", None)
        if code in _REASONS:
            return code
        error = error.__cause__ or error.__context__
    return None


def _place(error: BaseException, folder: Path | None) -> Path | None:
    name = getattr(error, "filename", None)
    if not isinstance(name, str) or (folder and Path(name).is_relative_to(folder)):
        return folder
    return Path(name).parent
