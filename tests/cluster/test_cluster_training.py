"""DFCP's joint stage over three Ray nodes: ranks on different nodes, the result of a local run, and a killed node."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import log_of
from running_cluster import REPOSITORY, RunningCluster

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(900)]

TWO_RANKS = ["--set", "workers=2", "--set", "parallel.expert=2"]


def write_job(folder: Path, epochs: int) -> Path:
    """DFCP as in the demo, smaller, with `epochs` of its joint stage and a checkpoint after each.

    Without dropout, whose draws differ from rank to rank. A worker fills a node: ranks of a group would share one.
    """
    job: dict[str, Any] = yaml.safe_load((REPOSITORY / "jobs/demo.yaml").read_text())
    dfcp = job.pop("methods")["dfcp"]
    dfcp["pseudo_labels"]["siamese"]["epochs"] = 40
    dfcp["clusters"] = {"count": 40, "restarts": 3}
    dfcp["trusted"] = {"fraction": 0.3}
    dfcp["alone"]["epochs"] = 1
    dfcp["joint"]["epochs"] = epochs
    dfcp["gate"]["dropout"] = 0.0
    small = {"kind": "train", "name": "small", "method": dfcp, "paper_table": None}
    job |= small | {"resources": {"cpus_per_worker": 2}}
    job["data"] |= {"max_train_images": 600, "max_test_images": 200}
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(job))
    return path


def submission(nodes: RunningCluster, job_path: Path, out: Path) -> subprocess.Popen[str]:
    """`moe-dist submit --follow` of the job at two ranks, under way; its output goes to a file beside `out`."""
    command = [sys.executable, "-m", "moe_dist.cli", "submit", str(job_path), "--follow", *TWO_RANKS]
    command += ["--address", nodes.cluster.dashboard, "--out", str(out)]
    with out.with_suffix(".log").open("w") as log:
        return subprocess.Popen(command, env=nodes.environment(), stdout=log, stderr=log, text=True)


def train_workers(nodes: RunningCluster) -> list[dict[str, Any]]:
    """Ray Train's worker actors, dead ones too, in the words of the state API."""
    request = urllib.request.Request(f"{nodes.cluster.dashboard}/api/v0/actors?detail=1&limit=1000")
    request.add_header("Authorization", f"Bearer {Path(nodes.cluster.token_path).read_text()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        actors = json.load(answer)["data"]["result"]["result"]
    return [actor for actor in actors if actor["class_name"] == "RayTrainWorker"]


def node_addresses(nodes: RunningCluster) -> dict[str, str]:
    """Node id -> loopback address, of the living."""
    import local

    return {node["node_id"]: node["node_ip"] for node in local.alive_nodes(nodes.cluster)}


def steps(run: Path) -> list[dict[str, Any]]:
    """What was logged of the optimiser steps, in the order it was."""
    lines = log_of(run / "dfcp")
    return [line for line in lines if line["kind"] == "step"]


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in steps(run)]


def test_two_ranks_on_two_nodes_give_the_result_of_one_process(three_nodes: RunningCluster, tmp_path: Path) -> None:
    job_path, far, near = write_job(tmp_path, epochs=2), tmp_path / "far", tmp_path / "near"
    assert submission(three_nodes, job_path, far).wait() == 0, far.with_suffix(".log").read_text()
    assert len({worker["node_id"] for worker in train_workers(three_nodes)}) == 2

    command = [sys.executable, "-m", "moe_dist.cli", "run", str(job_path), "--launcher", "local", "--out", str(near)]
    environment = three_nodes.environment(token=False) | {"MOE_DIST_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    expected, found = losses(near), losses(far)
    assert len(expected) == len(found) > 10
    # Sums in another order differ by 1e-7; later than this Adam, whose division magnifies them, sets the two apart.
    assert max(abs(one - two) for one, two in zip(expected[:10], found[:10])) < 1e-5


def test_a_killed_node_costs_steps_but_not_the_run(three_nodes: RunningCluster, tmp_path: Path) -> None:
    import processes

    epochs, run, before = 30, tmp_path / "run", len(train_workers(three_nodes))
    following = submission(three_nodes, write_job(tmp_path, epochs), run)
    while not list((run / "dfcp/trainings").glob("*/checkpoints/checkpoint_*/state.json")):
        assert following.poll() is None, run.with_suffix(".log").read_text()
        time.sleep(0.1)
    addresses = node_addresses(three_nodes)
    hosts = {addresses[worker["node_id"]] for worker in train_workers(three_nodes) if worker["state"] == "ALIVE"}
    victim = max(hosts)  # never the head, which has the lowest address
    (holder,) = [node.process for node in three_nodes.cluster.nodes if node.address == victim]
    for process in processes.descendants([holder]):
        if Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/raylet"):
            os.kill(process.pid, signal.SIGKILL)

    assert following.wait() == 0, run.with_suffix(".log").read_text()
    assert victim not in node_addresses(three_nodes).values()
    done = [line["step"] for line in steps(run)]
    assert set(done) == set(range(1, max(done) + 1)), "every step was done"
    assert max(done) % epochs == 0
    restarts = [later for earlier, later in itertools.pairwise(done) if later <= earlier]
    assert all(step > 1 for step in restarts), "it went on from a checkpoint, not from the start"
    assert len(train_workers(three_nodes)) >= before + 4, "a second group of workers was started"
