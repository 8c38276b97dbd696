"""RAY_ADDRESS of a cluster that is gone, and of what is no cluster."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from moe_dist import ray_address
from moe_dist.errors import UserError
from moe_dist.ray_address import cluster_address


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and says nothing, as of a program that hangs."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def refused(address: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError) as told:
        cluster_address()
    assert str(told.value).startswith(f"RAY_ADDRESS {address}: ") and "\n" not in str(told.value)
    return str(told.value)


@pytest.mark.parametrize("address", ["http://head:8265", "https://head"])
def test_a_job_servers_address_says_what_it_is_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"`moe-dist submit JOB.yaml --address {address}`" in refused(address, monkeypatch)


@pytest.mark.parametrize("address", ["head", "head:", "head:port", "s3://bucket/x", "a b:1", "head:6379/x", ":6379"])
def test_what_is_no_address_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "write it as host:port" in refused(address, monkeypatch)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9", "ray://127.0.0.1:9", "[::1]:9", "127.0.0.1:99999", "no.such.host.invalid:1"]
)
def test_a_cluster_that_is_gone_is_told(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no Ray cluster answers there" in refused(address, monkeypatch)


def test_a_port_of_something_else_is_told(silent_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 0.2)
    assert "what listens there is no Ray" in refused(f"127.0.0.1:{silent_port}", monkeypatch)


def test_a_server_that_speaks_grpc_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    server = grpc.server(ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        assert cluster_address() == f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize(("value", "address"), [("auto", "auto"), ("local", None), ("", None), (" ", None)])
def test_where_ray_finds_the_cluster_itself_nothing_is_asked(
    value: str, address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", value)
    assert cluster_address() == address
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address() is None
