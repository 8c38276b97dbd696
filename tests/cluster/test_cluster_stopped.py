"""A cluster that has lost a node still takes jobs, and a job that is stopped there says how to go on."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from run_folders import files_below
from running_cluster import RunningCluster

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

METHOD = {
    "name": "traditional_moe",
    "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8},
    "gate": {"filters": [4, 8], "hidden": [16]},
    "batch_size": 32,
}


def write_job(folder: Path, epochs: int) -> Path:
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 200, "max_test_images": 40}
    path = folder / "a job.yaml"
    path.write_text(
        yaml.safe_dump({"name": "small", "kind": "train", "data": data, "method": METHOD | {"epochs": epochs}})
    )
    return path


def moe_dist(nodes: RunningCluster, log: Path, *words: str) -> subprocess.Popen[str]:
    with log.open("w") as file:
        command = [sys.executable, "-m", "moe_dist.cli", *words]
        return subprocess.Popen(command, env=nodes.environment(), stdout=file, stderr=file, text=True)


def kill_raylet(nodes: RunningCluster, address: str) -> None:
    import processes

    (holder,) = [node.process for node in nodes.cluster.nodes if node.address == address]
    for process in processes.descendants([holder]):
        if Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"):
            os.kill(process.pid, signal.SIGKILL)


def test_a_job_goes_in_after_a_node_has_died(three_nodes: RunningCluster, tmp_path: Path) -> None:
    import local

    kill_raylet(three_nodes, "127.0.0.4")
    while "127.0.0.4" in {node["node_ip"] for node in local.alive_nodes(three_nodes.cluster)}:
        time.sleep(0.2)
    words = ["submit", str(write_job(tmp_path, epochs=2)), "--address", three_nodes.cluster.dashboard, "--follow"]
    words += ["--out", str(tmp_path / "run")]
    log = tmp_path / "log.txt"
    assert moe_dist(three_nodes, log, *words).wait() == 0, log.read_text()
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_job_that_is_stopped_unwinds_and_says_which_submission_goes_on(
    three_nodes: RunningCluster, tmp_path: Path
) -> None:
    """Ray gives a stopped job three seconds between SIGTERM and SIGKILL."""
    run, log = tmp_path / "run", tmp_path / "log.txt"
    words = ["submit", str(write_job(tmp_path, epochs=60)), "--address", three_nodes.cluster.dashboard]
    words += ["--out", str(run), "--follow"]
    following = moe_dist(three_nodes, log, *words)
    while not any(path.read_text().count("\n") > 10 for path in files_below(run, "metrics.jsonl")):
        assert following.poll() is None, log.read_text()
        time.sleep(0.1)
    (submission,) = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("submitted ")]
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", three_nodes.cluster.dashboard]
    subprocess.run([*stop, submission], env=three_nodes.environment(), check=True, capture_output=True)
    assert following.wait() != 0
    sentence = "stopped by SIGTERM; go on with: moe-dist "
    (told,) = [line for line in log.read_text().splitlines() if line.startswith(sentence)]
    go_on = shlex.split(told.removeprefix(sentence))
    assert set(go_on) == {*words, "--resume"}
    assert moe_dist(three_nodes, log, *go_on).wait() == 0, log.read_text()
    assert (run / "report.html").is_file()
