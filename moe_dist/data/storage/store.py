"""The places of shards and the files there: a folder of this machine, or a URL (s3://bucket/folder, https://...).

What fails behind a URL is tried again after pauses, and given up with one sentence. Credentials come from where the
protocol's library looks for them (environment, configuration files, the machine's role); no message contains them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit, urlunsplit

from fsspec.core import strip_protocol

from moe_dist.data.storage.transfer import Failed, Watch, failure_of, http_status, operate, protocol, without_secrets
from moe_dist.errors import UserError
from moe_dist.files import file_sha256
from moe_dist.paths import is_url
from moe_dist.settings.data import DEFAULT_REMOTE, RemoteConfig

LONGEST_PAUSE_SECONDS = 30
T = TypeVar("T")


class StoreFailed(UserError):
    """An operation on a store that failed at its last try; lasting: trying again cannot help."""

    def __init__(self, sentence: str, lasting: bool) -> None:
        super().__init__(sentence)
        self.lasting = lasting


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


def exists(place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE) -> bool:
    """Whether `place` is a file. Raises UserError where a store does not say."""
    if not is_url(place):
        with _looking_at(place):
            return Path(place).is_file()
    url = str(place)

    def look(watch: Watch) -> bool:
        operate(url, "info", remote.timeout_seconds, watch)
        return True

    return _try(look, url, "cannot be looked up", remote, missing=lambda: False)


@contextmanager
def _looking_at(place: Path | str) -> Iterator[None]:
    """Raise UserError where a place of this machine cannot be looked at: a folder without permission, a stale share."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{place}: cannot be looked up ({error.strerror}); make it readable") from None


def list_names(place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE) -> list[str]:
    """The names of the files directly below `place`, sorted. Raises UserError where a store does not say.

    There are no names where there is no listing, as on most web servers.
    """
    if not is_url(place):
        with _looking_at(place):
            return sorted(path.name for path in Path(place).iterdir() if path.is_file())
    return _listed(str(place), remote)[0]


def walk(url: str, remote: RemoteConfig = DEFAULT_REMOTE, below: str = "") -> Iterator[str]:
    """The paths of all files below a URL, folder by folder, with `/` between folders. Raises UserError."""
    files, folders = _listed(join(url, below) if below else url, remote)
    yield from (below + name for name in files)
    for name in folders:
        yield from walk(url, remote, f"{below}{name}/")


def _listed(url: str, remote: RemoteConfig) -> tuple[list[str], list[str]]:
    """The names of the files and of the folders directly below a URL, each sorted."""

    def look(watch: Watch) -> tuple[list[str], list[str]]:
        found = operate(url, "ls", remote.timeout_seconds, watch)
        names: dict[str, list[str]] = {"file": [], "directory": []}
        for entry in found:
            name = entry["name"].rstrip("/").rpartition("/")[2]
            if name:  # an object called "folder/" stands for the folder
                names[entry["type"]].append(name)
        return sorted(names["file"]), sorted(names["directory"])

    return _try(look, url, "cannot be listed", remote, missing=lambda: ([], []))


class Stored(NamedTuple):
    """A file in a store: its bytes, and when it was written in seconds since 1970, if the store says."""

    size: int
    written: float | None


def stored_files(url: str, remote: RemoteConfig = DEFAULT_REMOTE) -> dict[str, Stored]:
    """All files below a URL, by their paths below it, with `/` between folders. Raises UserError.

    Names that would lead to another folder of this machine are left out.
    """

    def look(watch: Watch) -> dict[str, Stored]:
        top = strip_protocol(url).strip("/")
        found = operate(url, "find", remote.timeout_seconds, watch)
        below = {name.strip("/").removeprefix(top).strip("/"): entry for name, entry in found.items()}
        return {
            name: Stored(entry["size"], _when_written(entry))
            for name, entry in below.items()
            if not {"", ".", ".."}.intersection(name.split("/"))
        }

    return _try(look, url, "cannot be listed", remote, missing=dict)


def _when_written(entry: Mapping[str, Any]) -> float | None:
    """When a file was written, by the name that its store gives that: S3, a file system, Google."""
    when = next((entry[name] for name in ("LastModified", "mtime", "updated") if name in entry), None)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime) else when


def remove(url: str, remote: RemoteConfig = DEFAULT_REMOTE) -> None:
    """Remove the file at a URL, if there is one. Raises UserError."""

    def take_away(watch: Watch) -> None:
        operate(url, "rm_file", remote.timeout_seconds, watch)

    _try(take_away, url, "cannot be removed", remote, missing=lambda: None)


def get_file(url: str, to: Path, remote: RemoteConfig = DEFAULT_REMOTE, sha256: str | None = None) -> None:
    """Fetch the file at `url` to `to`, from the start at every try.

    sha256: what the bytes must be, in hexadecimal. Raises UserError where they cannot be had, OSError where `to` cannot
    be written.
    """
    to.touch()  # an error of this disk comes here, where it is not taken for one of the store
    fresh = to.with_name(f"{to.name}.new")

    def fetch(watch: Watch) -> None:
        fresh.touch()
        fresh.replace(to)  # a try that was given up may still write to the last one; and `to` is there all the time
        operate(url, "get_file", remote.timeout_seconds, watch, to)
        if sha256 is not None and file_sha256(to) != sha256:
            size = to.stat().st_size
            raise Failed(
                f"the {size} bytes that arrived are not those of the index (another sha256)",
                "run `moe-dist shards check` on it, or build the shards again",
            )

    _try(fetch, url, "cannot be fetched", remote)


@contextmanager
def local_file(place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE) -> Iterator[Path]:
    """The file at `place` as a path of this machine: a file behind a URL is copied, and removed when the block ends.

    Raises UserError where it cannot be fetched.
    """
    if not is_url(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "file"
        get_file(str(place), copy, remote)
        yield copy


def get_bytes(place: Path | str, remote: RemoteConfig = DEFAULT_REMOTE) -> bytes:
    """The content of the file at `place`. Raises UserError where it cannot be fetched, OSError for a file here."""
    with local_file(place, remote) as path:
        return path.read_bytes()


def require_store(url: str) -> None:
    """Raise UserError for a URL that cannot be written to."""
    if protocol(url) in ("http", "https"):
        raise UserError(f"{shown(url)}: cannot be written over http; name a folder, s3:// or gs://")


def put_file(local: Path, url: str, remote: RemoteConfig = DEFAULT_REMOTE) -> None:
    """Write the file `local` to `url`, over what is there; it appears whole. Raises UserError."""
    require_store(url)

    def put(watch: Watch) -> None:
        operate(url, "put_file", remote.timeout_seconds, watch, local)

    _try(put, url, "cannot be written", remote)


def _try(
    attempt: Callable[[Watch], T],
    url: str,
    failing: str,
    remote: RemoteConfig,
    missing: Callable[[], T] | None = None,
) -> T:
    """The result of `attempt`, which is made `1 + remote.retries` times unless its failure is a lasting one.

    missing: the result where there is nothing at `url`; None: that is a failure.
    """
    for tried in range(1, remote.retries + 2):
        watch = Watch()
        try:
            return attempt(watch)
        except UserError:
            raise
        except Exception as error:  # every library behind fsspec raises its own
            if missing is not None and isinstance(error, OSError) and http_status(error) in (404, 410):
                return missing()
            failed = failure_of(error, watch)
        if failed.lasting:
            break
        if tried <= remote.retries:
            sleep(min(2 ** (tried - 1), LONGEST_PAUSE_SECONDS))
    times = "" if tried == 1 else f" after {tried} tries"
    raise StoreFailed(f"{shown(url)}: {failing}{times}: {failed.reason}; {failed.advice}", failed.lasting)
