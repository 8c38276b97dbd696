"""Several jobs on one cluster, what the doctor says of its nodes, and a head that dies while a job is followed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_folders import files_below
from running_cluster import RunningCluster
from test_cluster_stopped import moe_dist, write_job

pytestmark = [pytest.mark.slow, pytest.mark.chaos]


def answer(nodes: RunningCluster, *words: str) -> subprocess.CompletedProcess[str]:
    """The outcome of a short command at the cluster's job server."""
    command = [sys.executable, "-m", "moe_dist.cli", *words, "--address", nodes.cluster.dashboard]
    return subprocess.run(command, env=nodes.environment(), capture_output=True, text=True)


def submission(nodes: RunningCluster, run: Path, epochs: int, workers: int) -> subprocess.Popen[str]:
    """A followed submission; its output goes to a file beside the run directory."""
    words = ["submit", str(write_job(run.parent, epochs)), "--address", nodes.cluster.dashboard, "--follow"]
    words += ["--out", str(run), "--set", f"workers={workers}", "--set", "checkpoint.every_epochs=1"]
    return moe_dist(nodes, run.with_suffix(".log"), *words)


def has_checkpoint(run: Path) -> bool:
    """Whether a whole checkpoint is there; a run at work may remove what lies beside it."""
    return any(path.parent.name.startswith("checkpoint_") for path in files_below(run, "state.json"))


def wait_for(text: str, log: Path, following: subprocess.Popen[str]) -> None:
    while text not in log.read_text():
        assert following.poll() is None, log.read_text()
        time.sleep(0.2)


def id_in(log: Path) -> str:
    (found,) = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("submitted ")]
    return found


def test_a_job_that_waits_for_another_says_so_and_goes_on_when_that_is_stopped(
    three_nodes: RunningCluster, tmp_path: Path
) -> None:
    first = submission(three_nodes, tmp_path / "first", epochs=2000, workers=4)
    while not has_checkpoint(tmp_path / "first"):
        assert first.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.2)
    second = submission(three_nodes, tmp_path / "second", epochs=1, workers=4)
    wait_for("waits for room on the cluster", tmp_path / "second.log", second)
    assert "asks for 4 CPUs (free: 2)" in (tmp_path / "second.log").read_text()
    ids = id_in(tmp_path / "second.log"), id_in(tmp_path / "first.log")
    listed = answer(three_nodes, "jobs", "list").stdout
    assert listed.index(ids[0]) < listed.index(ids[1])
    waiting = answer(three_nodes, "jobs", "status", ids[0])
    assert waiting.returncode == 0 and "running" in waiting.stdout
    stopped = answer(three_nodes, "jobs", "stop", ids[1])
    assert f"{ids[1]}: stopped" in stopped.stdout and "--resume" in stopped.stdout
    assert first.wait() == 1
    assert second.wait() == 0, (tmp_path / "second.log").read_text()
    assert "there is room, after" in (tmp_path / "second.log").read_text()
    assert answer(three_nodes, "jobs", "status", ids[1]).returncode == 1


def test_the_doctor_finds_three_equal_nodes(three_nodes: RunningCluster, tmp_path: Path) -> None:
    outcome = answer(three_nodes, "doctor", "--out", str(tmp_path / "run"))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert all(name in outcome.stdout for name in ("here", "127.0.0.2", "127.0.0.3", "127.0.0.4", "nothing is wrong"))
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_dies_is_a_sentence_with_the_command_that_goes_on(
    three_nodes: RunningCluster, tmp_path: Path
) -> None:
    """Last in this file: it ends the cluster that the others use."""
    import processes

    run, log = tmp_path / "run", tmp_path / "run.log"
    following = submission(three_nodes, run, epochs=2000, workers=2)
    while not has_checkpoint(run):
        assert following.poll() is None, log.read_text()
        time.sleep(0.2)
    for process in processes.descendants([three_nodes.cluster.nodes[0].process]):
        os.kill(process.pid, signal.SIGKILL)
    assert following.wait() == 2
    told = log.read_text().splitlines()[-1]
    assert told.startswith(f"error: {three_nodes.cluster.dashboard} does not answer any more, so it is not known how")
    go_on = shlex.split(told.partition("this goes on: ")[2])
    assert go_on[:2] == ["moe-dist", "submit"] and "--resume" in go_on and str(run) in go_on
    assert "WebSocket" not in log.read_text() and "Traceback" not in log.read_text()
