"""An S3 server of this machine that can be away for a while, and the environment in which it is found."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest
from moto.server import ThreadedMotoServer
from s3fs import S3FileSystem

SECRET = "hidden-secret-key"


def reserved_port() -> socket.socket:
    """A socket whose port Linux gives to nobody who asks for any, until it is closed; a server may listen there."""
    reservation = socket.socket()
    reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reservation.bind(("127.0.0.1", 0))
    return reservation


class S3Server:
    """moto's S3 server, whose objects outlive a stop (they are in this process)."""

    def __init__(self) -> None:
        self._reservation = reserved_port()
        self.port = self._reservation.getsockname()[1]
        self.start()

    def start(self) -> None:
        """Be there again, at the same port."""
        self._server = ThreadedMotoServer("127.0.0.1", self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Be away; the port stays ours, and nobody answers there."""
        self._server.stop()

    def be_away(self, seconds: float) -> threading.Thread:
        """Stop, and start again after so many seconds in the thread that is returned."""
        self.stop()

        def come_back() -> None:
            time.sleep(seconds)
            self.start()

        thread = threading.Thread(target=come_back)
        thread.start()
        return thread


@contextmanager
def serving_s3(bucket: str) -> Iterator[S3Server]:
    """Give the block a server with an empty bucket, which this process and those that it starts find and may use."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        S3FileSystem.clear_instance_cache()
        boto3.client("s3").create_bucket(Bucket=bucket)
        yield server
        S3FileSystem.clear_instance_cache()
    server.stop()
