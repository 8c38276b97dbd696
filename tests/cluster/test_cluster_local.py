"""cluster/local.py: what it refuses, the token's file, and that it ends its own processes and no others."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import local
import processes
import pytest

from moe_dist.errors import UserError

LEADER = "trap '' TERM; setsid sleep 300 & sleep 300 & while true; do sleep 1; done"
"""A leader that does not listen, with a child in a session of its own, as Ray's drivers are."""


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes a test starts; ended here whatever the test did."""
    children: list[subprocess.Popen[bytes]] = []
    yield children
    for child in children:
        child.kill()
        child.wait()


def process_of(child: subprocess.Popen[bytes]) -> processes.Process:
    found = processes.process_of(child.pid)
    assert found is not None
    return found


def wait_for_family(leader: processes.Process, size: int) -> list[processes.Process]:
    while len(family := processes.descendants([leader])) < size:
        time.sleep(0.05)
    return family


def test_ending_reaches_every_descendant_and_nobody_else(started: list[subprocess.Popen[bytes]]) -> None:
    started += [subprocess.Popen(["sh", "-c", LEADER]), subprocess.Popen(["sleep", "300"])]
    leader, bystander = (process_of(child) for child in started)
    family = wait_for_family(leader, size=3)
    processes.end([leader], patience_seconds=0.3)
    started[0].wait()
    while any(processes.is_alive(process) for process in family):
        time.sleep(0.05)
    assert started[0].returncode == -signal.SIGKILL
    assert processes.is_alive(bystander)


def test_a_process_that_got_the_id_later_is_left_alone(started: list[subprocess.Popen[bytes]]) -> None:
    started.append(subprocess.Popen(["sleep", "300"]))
    recorded = processes.Process(started[0].pid, started=process_of(started[0]).started - 1)
    assert not processes.is_alive(recorded)
    processes.end([recorded], patience_seconds=0.0)
    assert processes.is_alive(process_of(started[0]))


def test_the_token_is_long_new_and_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("an old one, readable by all")
    path.chmod(0o644)
    written = local.write_token(path)
    assert written.stat().st_mode & 0o777 == 0o600
    assert len(bytes.fromhex(written.read_text())) == 32
    first = written.read_text()
    assert local.write_token(path).read_text() != first


def test_a_port_that_is_taken_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} of 127\.0\.0\.1 is taken .*choose one with --port"):
            local.start(tmp_path, nodes=2, cpus_per_node=1, port=port)
    assert local.load(tmp_path) is None


def test_the_ports_are_nobody_elses_until_the_nodes_listen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start_node(folder: Path, cluster: local.Cluster, number: int, cpus: int) -> local.Cluster:
        for address in (cluster.dashboard.removeprefix("http://"), cluster.head):
            place = address.partition(":")[0], int(address.partition(":")[2])
            with socket.socket() as other, pytest.raises(OSError, match="already in use"):
                other.bind(place)
            socket.create_server(place).close()  # as a node does
        return cluster

    monkeypatch.setattr(local, "_start_node", start_node)
    monkeypatch.setattr(local, "_wait_until_alive", lambda *_: None)
    cluster = local.start(tmp_path, nodes=2, cpus_per_node=1, port=0)
    assert local.load(tmp_path) == cluster and not cluster.dashboard.endswith(":0")
    local.stop(tmp_path)


def test_a_second_cluster_in_the_same_folder_is_a_sentence(tmp_path: Path) -> None:
    cluster = local.Cluster("http://127.0.0.1:1", "127.0.0.2:1", str(tmp_path / "token"), str(tmp_path / "ray"), ())
    local.save(tmp_path, cluster)
    assert local.load(tmp_path) == cluster
    with pytest.raises(UserError, match="already recorded here; stop it first"):
        local.start(tmp_path, nodes=2, cpus_per_node=1, port=1)


def test_stopping_and_asking_where_none_runs_are_sentences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for action in ("stop", "status"):
        assert local.main([action, "--folder", str(tmp_path)]) == 1
        assert "no local cluster is recorded here" in capsys.readouterr().err


def test_nodes_get_this_python_first_and_the_token_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of another cluster, and Ray would prefer it")
    monkeypatch.setenv("RAY_ADDRESS", "of another cluster")
    cluster = local.Cluster("http://127.0.0.1:1", "127.0.0.2:1", str(tmp_path / "token"), str(tmp_path), ())
    environment = local.node_environment(cluster)
    assert {"RAY_AUTH_TOKEN", "RAY_ADDRESS"}.isdisjoint(environment)
    assert environment["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    found = subprocess.run(
        ["sh", "-c", "command -v python"], env=environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert Path(found).parent == Path(sys.executable).parent
