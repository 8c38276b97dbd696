"""Paths of this machine as a user gives them.

A URL is refused while it is still text, because a Path drops one of its slashes: `Path("s3://bucket/x")` is
`s3:/bucket/x`, which would become a folder named `s3:` in the current one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from moe_dist.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Matches a URL that has lost a slash, too; a single letter before the colon would be a drive of Windows."""
FOR_RUNS = "run directories in object storage are not built yet; give a folder (on a cluster, one every node reaches)"


def local_path(given: str | Path) -> Path:
    """The path `given`, which is on this machine. Raises ValueError for a URL."""
    if _URL.match(str(given)):
        raise ValueError("must be a path of this machine (only shards may be a URL)")
    return Path(given)


def typed(what: str, instead: str) -> Callable[[str], Path]:
    """A parser of the path that a user types for `what`.

    The parser raises UserError for a URL and says what to give `instead`. It shows the URL without a user and a
    password before the host, and without a query, which may carry a signature.
    """

    def path(text: str) -> Path:
        try:
            return local_path(text)
        except ValueError as error:
            shown = re.sub(r"(?<=:/)(/?)[^/]*@", r"\1", text.partition("?")[0])
            raise UserError(f"{what} {shown}: {error}; {instead}") from None

    return path
