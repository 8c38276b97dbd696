"""One operation of a file system behind a URL: opening it, ending it where it is silent, and explaining its failures.

fsspec's file systems raise the errors of their libraries, wait without a limit or with limits of their own, and some
try again by themselves. Here every operation is watched: it ends when nothing moves for `timeout` seconds.
"""

from __future__ import annotations

import asyncio
import errno
import re
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic
from typing import Any

from fsspec.callbacks import Callback
from fsspec.core import url_to_fs

from moe_dist.errors import UserError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""The optional dependency of moe-dist that a protocol needs."""
_UPLOAD_BLOCK = {"chunksize": 8 * 2**20}
"""s3 and gs report progress once a block: a slow line must send one (S3: two) within the timeout."""
_NETWORK = "check the network, or raise data.remote.timeout_seconds or data.remote.retries"


@dataclass(eq=False)
class Failed(Exception):
    """The reason why an operation failed, and advice; lasting: trying again cannot help."""

    reason: str
    advice: str
    lasting: bool = False


class Watch(Callback):
    """The state of a transfer: its bytes, and when the last of them moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moved = monotonic()

    def call(self, *args: Any, **kwargs: Any) -> None:
        """fsspec's hook for every change of `size` or `value`, in bytes."""
        self.moved = monotonic()


def protocol(url: str) -> str:
    """The part of a URL before `://`."""
    return url.partition("://")[0]


def without_secrets(text: str) -> str:
    """A text without the users, passwords and queries (which may carry a signature) of the URLs in it."""
    return re.sub(r"\?[^\s'\"]*", "", re.sub(r"(\w://)[^/\s@]*@", r"\1", text))


def operate(url: str, operation: str, timeout: float, watch: Watch, local: Path | None = None) -> Any:
    """The result of fsspec's `operation` (info, ls, find, get_file, put_file, rm_file) on `url`.

    local: the file that is got or put. Raises the file system's own errors, Failed where nothing moves for `timeout`
    seconds, and UserError where no installed package knows the protocol.
    """
    system, path = _open(url, timeout)
    block = _UPLOAD_BLOCK if protocol(url) in _EXTRAS else {}
    arguments: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "info": ((path,), {}),
        "ls": ((path,), {"detail": True}),
        "find": ((path,), {"detail": True}),
        "rm_file": ((path,), {}),
        "get_file": ((path, str(local)), {"callback": watch}),
        "put_file": ((str(local), path), {"callback": watch, **block}),
    }
    watch.moved = monotonic()  # loading a protocol's library is not the store's silence
    future = _start(system, operation, *arguments[operation])
    try:
        while not future.done():
            silent = monotonic() - watch.moved
            if silent >= timeout:
                raise Failed(f"the store was silent for {timeout:g} s", _NETWORK)
            wait([future], timeout - silent)
        return future.result()
    finally:
        future.cancel()


def failure_of(error: Exception, watch: Watch) -> Failed:
    """The reason and the advice for a file system's error."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Failed("the disk is full", "free space, or lower data.remote.cache_gib", lasting=True)
    status = http_status(error)
    if status in (404, 410):
        return Failed(f"there is no such file ({status})", "check the address, or build the shards again", lasting=True)
    if "Credentials" in type(error).__name__:
        return Failed("no credentials were found", "set them in the environment", lasting=True)
    forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")  # gcsfs gives no status
    if status in (401, 403) or forbidden:
        return Failed(f"the store refuses access ({status or 403})", "check the credentials in the environment", True)
    if isinstance(error, TimeoutError):
        return Failed("the store or the network timed out", _NETWORK)
    if status is not None:
        lasting = status < 500 and status not in (408, 425, 429)
        return Failed(f"the store answered {status}", "try again later, or raise data.remote.retries", lasting)
    if watch.value and watch.size:
        return Failed(f"the connection ended after {watch.value} of {watch.size} bytes", _NETWORK)
    cause = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
    words = without_secrets(" ".join(str(cause).split())) or type(cause).__name__
    return Failed(words, "check the address and the network, or raise data.remote.retries to wait longer")


def http_status(error: BaseException) -> int | None:
    """The HTTP status that a file system's error stands for; None where it stands for none.

    fsspec and s3fs raise an OSError in place of a library's error (fsspec: FileNotFoundError for any failure of an http
    request), whose cause tells what happened.
    """
    for link in (error, error.__cause__ if isinstance(error, OSError) else None):
        response = getattr(link, "response", None)  # botocore's
        if isinstance(response, dict):
            return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for name in ("status", "code"):  # aiohttp's, gcsfs's
            if isinstance(value := getattr(link, name, None), int):
                return value
    if error.__cause__ is not None:
        return None
    return 404 if isinstance(error, FileNotFoundError) else 403 if isinstance(error, PermissionError) else None


def _open(url: str, timeout: float) -> tuple[Any, str]:
    """The file system of `url`, its remembered listings forgotten, and the path in it. Raises UserError.

    fsspec keeps one file system of a kind in a process.
    """
    try:
        system, path = url_to_fs(url, **_options(protocol(url), timeout))
    except ImportError as error:
        extra = _EXTRAS.get(protocol(url))
        install = f"install it with `pip install 'moe-dist[{extra}]'`" if extra else str(error)
        raise UserError(f"{without_secrets(url)}: the package for {protocol(url)}:// is missing; {install}") from None
    except ValueError as error:
        raise UserError(
            f"{without_secrets(url)}: is not the address of a store ({without_secrets(str(error))})"
        ) from None
    if protocol(url) in ("s3", "s3a"):
        system.retries = 1  # trying again is done, counted and reported here
        system.connect()  # reads S3's definitions: a second on a busy machine, and not the store's silence
    system.invalidate_cache()
    return system, path


def _options(name: str, timeout: float) -> dict[str, Any]:
    """Options for a protocol's file system, so that its own limits and repetitions do not come before ours."""
    if name in ("s3", "s3a"):
        waits = {"connect_timeout": 2 * timeout, "read_timeout": 2 * timeout, "retries": {"max_attempts": 0}}
        return {"config_kwargs": waits, "max_concurrency": 1}
    if name in ("http", "https", "gs", "gcs"):
        from aiohttp import ClientTimeout  # whose default ends a whole file after five minutes

        limits = ClientTimeout(total=None, sock_connect=2 * timeout, sock_read=2 * timeout)
        if name in ("gs", "gcs"):
            return {"session_kwargs": {"timeout": limits}}
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    return {"auto_mkdir": True} if name in ("file", "local") else {}


def _start(system: Any, operation: str, paths: tuple[str, ...], options: dict[str, Any]) -> Future[Any]:
    """Start the operation: on fsspec's event loop, or in a thread for a file system without one."""
    if system.async_impl:
        return asyncio.run_coroutine_threadsafe(getattr(system, f"_{operation}")(*paths, **options), system.loop)
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(getattr(system, operation)(*paths, **options))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
