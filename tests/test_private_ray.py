"""A Ray of a command's own: what it listens on, and who can read its token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_dist.errors import UserError
from moe_dist.private_ray import close_token


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh home; with the usual umask, under which all may read a new file."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    before = os.umask(0o022)
    yield tmp_path
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_the_token_is_new_and_for_its_owner_only(home: Path) -> None:
    close_token()
    token = home / ".ray" / "auth_token"
    assert mode(token) == 0o600
    assert len(bytes.fromhex(token.read_text())) == 32


def test_a_token_that_is_there_is_kept_and_closed_to_others(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("by ray get-auth-token --generate")
    assert mode(token) == 0o644
    close_token()
    assert (token.read_text(), mode(token)) == ("by ray get-auth-token --generate", 0o600)


@pytest.mark.parametrize("name", ["RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_token_of_the_users_is_left_alone(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, str(home / "mine"))
    close_token()
    assert not (home / ".ray").exists()


def test_a_home_that_cannot_be_written_to_is_a_sentence(home: Path) -> None:
    (home / ".ray").touch()
    with pytest.raises(UserError, match=r"auth_token: Ray's token cannot be kept there for you alone \("):
        close_token()


LISTENING = """
import psutil, sys
from moe_dist.data.shards.build.build import _connected_ray
from moe_dist.launch.ray import started_ray
from moe_dist.terminal import Show, console
started = started_ray(1, Show(console)) if sys.argv[1] == "run" else _connected_ray(1)
with started:
    import ray
    ray.get(ray.remote(lambda: None).remote())  # a worker listens, too
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    sockets = [socket for process in processes for socket in process.net_connections("inet")]
    listening = [socket for socket in sockets if socket.status == psutil.CONN_LISTEN]
    print(len(listening) > 10, sorted({socket.laddr.ip.removeprefix('::ffff:') for socket in listening}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "shards"])
def test_an_embedded_ray_listens_on_this_machine_alone(command: str, home: Path) -> None:
    """In a process of its own, with a fresh home."""
    words = [sys.executable, "-c", LISTENING, command]
    outcome = subprocess.run(words, capture_output=True, text=True, check=True)
    assert outcome.stdout.splitlines()[-1] == "True ['127.0.0.1']", outcome.stdout
    assert mode(home / ".ray" / "auth_token") == 0o600
