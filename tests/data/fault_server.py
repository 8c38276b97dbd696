"""A web server on loopback that serves a folder, and misbehaves when told to."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from moe_dist.data.storage import transfer


class FaultServer(ThreadingHTTPServer):
    """Serves `root`. faults: by file name, what happens to its next GETs in turn; a trailing "..." repeats the last.

    An int is an HTTP status; "half" breaks off in mid body, "stall" answers nothing, "stall in body" stops in mid body,
    "flip" changes a bit, "" is no fault. asked: the file names of all GETs, in order; stalled: how many of them stall.
    """

    daemon_threads = True

    def __init__(self, root: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.root = root
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.asked: list[str] = []
        self.stalled = 0
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, name: str) -> int | str:
        """The fault of this GET of `name`."""
        coming = self.faults[name]
        if len(coming) == 2 and coming[1] == "...":
            return coming[0]
        return coming.pop(0) if coming else ""

    def stall(self) -> None:
        """Do nothing more for this GET until the server ends."""
        self.stalled += 1
        self.released.wait()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is what these tests are about, nothing to print."""


class _Handler(BaseHTTPRequestHandler):
    server: FaultServer

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        name = path.rpartition("/")[2]
        self.server.asked.append(name)
        fault = self.server.fault(name)
        if fault == "stall":
            self.server.stall()
        elif isinstance(fault, int):
            self.send_error(fault)
        elif not (self.server.root / path).is_file():
            self.send_error(404)
        else:
            self._send((self.server.root / path).read_bytes(), fault)

    def do_HEAD(self) -> None:
        path = self.server.root / self.path.partition("?")[0].lstrip("/")
        self.send_response(200 if path.is_file() else 404)
        self.send_header("Content-Length", str(path.stat().st_size if path.is_file() else 0))
        self.end_headers()

    def _send(self, data: bytes, fault: str) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "flip":
            data = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        self.wfile.write(data[: len(data) // 2] if fault in ("half", "stall in body") else data)
        self.wfile.flush()
        if fault == "stall in body":
            self.server.stall()
        self.close_connection = True

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@contextmanager
def time_passing_while_it_stalls(server: FaultServer, tries: Callable[[], int] = lambda: 0) -> Iterator[None]:
    """Let time pass for transfers only while the server stalls in a try, which then is over at once.

    However busy this machine is, no other try is taken for silent. tries: how many have failed.
    """
    now = [0.0]

    def waited(futures: list[Any], seconds: float) -> None:
        wait(futures, 0.01)
        if server.stalled > tries():
            now[0] += seconds

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "monotonic", lambda: now[0])
        patch.setattr(transfer, "wait", waited)
        yield


@contextmanager
def serving(root: Path, port: int = 0) -> Iterator[FaultServer]:
    """A FaultServer that runs while the block does."""
    server = FaultServer(root, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
