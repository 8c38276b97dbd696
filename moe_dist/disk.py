"""A full disk and its kind, as one sentence: the one place where the system's error codes become words."""

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
    errno.EIO: ("the disk fails", "see to it and"),
}
_RUST = re.compile(r"\(os error (\d+)\)")
"""How the system's code stands in what safetensors raises, which is no OSError."""


@contextmanager
def disk_explained(folder: Path | None, what: str, go_on: str = GO_ON) -> Iterator[None]:
    """Raise DiskError where a disk's failure ends the block, which writes `what` into `folder` (None: no one knows).

    Errors know the file where it was being opened, and not where it was being written: one outside `folder` is named
    by its own folder. A thread that meets the failure does not print it: whoever waits for the thread raises it again.
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
    """The system's code of a disk's failure in `error`, or in what it was raised from; None where it is none."""
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
