"""Parses the paths that a user gives.

A URL is rejected before it becomes a Path, which would drop a slash: `Path("s3://bucket/x")` is `s3:/bucket/x`, a path
below a folder `s3:` in the current directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

from moe_dist.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Matches a URL that has lost a slash, too; a single letter before the colon would be a drive of Windows."""
FOR_RUNS = "give a folder"


def is_url(place: Path | str) -> bool:
    """Whether `place` is a URL rather than a folder."""
    return "://" in str(place)


def local_path(given: str | Path) -> Path:
    """The path `given`.

    Raises ValueError for a URL, for what YAML reads as a number or anything else, and for a name that is not text: it
    could not be written into records and reports.
    """
    if not isinstance(given, str | Path):
        raise ValueError('must be a path (put quotes around a name that looks like something else: "2024")')
    if _URL.match(str(given)):
        raise ValueError("must be a path of this machine (only shards and runs may be a URL)")
    try:
        str(given).encode()
    except UnicodeEncodeError:
        raise ValueError("its name is not UTF-8; rename it, or reach it by a link") from None
    return Path(given)


def from_home(path: Path) -> Path:
    """The path with the home folder for `~` at its start. The `~name` of nobody stays: pathlib makes an error of it."""
    return Path(os.path.expanduser(path))


def typed(what: str, instead: str) -> Callable[[str], Path]:
    """A function that parses the path that a user types for `what`.

    It raises UserError for a URL, and says what to give `instead`. The URL is shown without user, password and query,
    which may contain secrets.
    """

    def path(text: str) -> Path:
        try:
            return local_path(text)
        except ValueError as error:
            shown = re.sub(r"(?<=:/)(/?)[^/]*@", r"\1", text.partition("?")[0] if _URL.match(text) else text)
            raise UserError(f"{what} {shown}: {error}; {instead}") from None

    return path
