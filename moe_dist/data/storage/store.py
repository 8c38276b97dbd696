"""Files under a URL: fetched whole, put, listed; tried again after pauses, and given up with one sentence.

Credentials come from where the protocol's library looks for them (environment, configuration files, the machine's
role); they are in no message.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from time import sleep
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

from moe_dist.data.storage.transfer import Failed, Progress, explain, http_status, operate, protocol, shown
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.settings.data import RemoteConfig

LONGEST_PAUSE_SECONDS = 30
_DEFAULTS = RemoteConfig()
T = TypeVar("T")


def is_url(place: Path | str) -> bool:
    """Whether `place` is a URL rather than a folder."""
    return "://" in str(place)


def join(place: str, name: str) -> str:
    """The URL of `name` under the URL `place`; a query (a signature over all of a container) stays at the end."""
    if protocol(place) not in ("http", "https"):
        return f"{place.rstrip('/')}/{name}"
    parts = urlsplit(place)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def exists(url: str, remote: RemoteConfig = _DEFAULTS) -> bool:
    """Whether there is a file at `url`. Raises UserError where the store does not say."""

    def look(progress: Progress) -> bool:
        try:
            operate(url, "info", remote.timeout_seconds, progress)
        except OSError as error:
            if http_status(error) in (404, 410):
                return False
            raise
        return True

    return _try(look, url, "cannot be looked up", remote)


def list_names(url: str, remote: RemoteConfig = _DEFAULTS) -> list[str]:
    """The names of the files directly under `url`, sorted; none where there is nothing. Raises UserError."""

    def look(progress: Progress) -> list[str]:
        try:
            found = operate(url, "ls", remote.timeout_seconds, progress)
        except OSError as error:
            if http_status(error) in (404, 410):
                return []
            raise
        names = (entry["name"].rstrip("/").rpartition("/")[2] for entry in found if entry["type"] == "file")
        return sorted(name for name in names if name)  # an object called "folder/" stands for the folder

    return _try(look, url, "cannot be listed", remote)


def get_file(url: str, to: Path, remote: RemoteConfig = _DEFAULTS, sha256: str | None = None) -> None:
    """Fetch the file at `url` to `to`, from the start at every try.

    sha256: what the bytes must be, in hexadecimal. Raises UserError where they cannot be had, OSError where `to` cannot
    be written.
    """
    to.touch()  # an error of this disk comes here, where it is not taken for one of the store
    fresh = to.with_name(f"{to.name}.new")

    def fetch(progress: Progress) -> None:
        fresh.touch()
        fresh.replace(to)  # a try that was given up may still write to the last one; and `to` is there all the time
        operate(url, "get_file", remote.timeout_seconds, progress, to)
        if sha256 is not None and file_sha256(to) != sha256:
            size = to.stat().st_size
            raise Failed(
                f"the {size} bytes that arrived are not those of the index (another sha256)",
                "run `moe-dist shards check` on it, or build the shards again",
            )

    _try(fetch, url, "cannot be fetched", remote)


def get_bytes(url: str, remote: RemoteConfig = _DEFAULTS) -> bytes:
    """The content of the file at `url`. Raises UserError."""
    with tempfile.TemporaryDirectory() as folder:
        get_file(url, Path(folder) / "file", remote)
        return (Path(folder) / "file").read_bytes()


def put_file(local: Path, url: str, remote: RemoteConfig = _DEFAULTS) -> None:
    """Write the file `local` to `url`, over what is there; it appears whole. Raises UserError."""
    if protocol(url) in ("http", "https"):
        raise UserError(f"{shown(url)}: cannot be written over http; build to a folder, s3:// or gs://")

    def put(progress: Progress) -> None:
        operate(url, "put_file", remote.timeout_seconds, progress, local)

    _try(put, url, "cannot be written", remote)


def _try(attempt: Callable[[Progress], T], url: str, what: str, remote: RemoteConfig) -> T:
    """The result of `attempt`, made `1 + remote.retries` times unless its failure is a lasting one."""
    for tried in range(1, remote.retries + 2):
        progress = Progress()
        try:
            return attempt(progress)
        except UserError:
            raise
        except Exception as error:  # every library behind fsspec raises its own
            failed = explain(error, progress)
        if failed.lasting:
            break
        if tried <= remote.retries:
            sleep(min(2 ** (tried - 1), LONGEST_PAUSE_SECONDS))
    times = "" if tried == 1 else f" after {tried} tries"
    raise UserError(f"{shown(url)}: {what}{times}: {failed.reason}; {failed.advice}")
