"""A place of shards: a folder of this machine, or a URL (s3://bucket/folder and whatever else fsspec knows)."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit


def is_url(place: Path | str) -> bool:
    """Whether `place` is a URL rather than a folder."""
    return "://" in str(place)


def protocol(url: str) -> str:
    """What stands before `://`."""
    return url.partition("://")[0]


def join(place: Path | str, *names: str) -> str:
    """The path or URL of a file or folder below `place`, given the `names` that lead to it.

    A URL's query (a signature over all of a container) stays at its end.
    """
    if not is_url(place):
        return str(Path(place, *names))
    url, below = str(place), "/".join(names)
    if protocol(url) not in ("http", "https"):
        return f"{url.rstrip('/')}/{below}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{below}"))


def shown(place: Path | str) -> str:
    """`place` for messages: a URL without a user, a password, or a query, which may carry a signature."""
    return without_secrets(str(place)) if is_url(place) else str(place)


def without_secrets(text: str) -> str:
    """A text without the users, passwords and queries of the URLs in it."""
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"(\w://)[^/\s@]*@", r"\1", text))
