"""DFCP's joint stage over three Ray nodes: ranks on different nodes, the result of a local run, and a killed node."""

from __future__ import annotations

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
from run_folders import log_of, training_of
from running_cluster import RunningCluster
from small_jobs import dfcp

from moe_dist.job import dump_job
from moe_dist.record.restarts import read_attempts

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

TWO_RANKS = ["--set", "workers=2", "--set", "parallel.expert=2"]


def write_job(folder: Path, epochs: int) -> Path:
    """DFCP-MoE with `epochs` of its joint stage and a checkpoint after each.

    A worker fills a node: ranks of a group would share one. Two micro-batches: one worker adds what two have each.
    """
    job = dfcp(parallel={"micro_batches": 2}, resources={"cpus_per_worker": 2})
    joint = job.method.joint.model_copy(update={"epochs": epochs})
    path = folder / "small.yaml"
    path.write_text(dump_job(job.model_copy(update={"method": job.method.model_copy(update={"joint": joint})})))
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
    """What was logged of the joint stage's optimiser steps, in the order it was."""
    return [line for line in log_of(run / "dfcp") if line["kind"] == "step"]


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [line["loss"] for line in steps(run)]


def joint_checkpoint(run: Path) -> bool:
    """Whether the joint stage, which is the last of the run's trainings, has saved a checkpoint."""
    saved = (run / "dfcp/trainings").glob("*/checkpoints/checkpoint_*/state.json")
    return any('"joint"' in (state.parents[2] / "metrics.jsonl").read_text() for state in saved)


def test_two_ranks_on_two_nodes_give_the_result_of_one_process(three_nodes: RunningCluster, tmp_path: Path) -> None:
    job_path, far, near = write_job(tmp_path, epochs=2), tmp_path / "far", tmp_path / "near"
    assert submission(three_nodes, job_path, far).wait() == 0, far.with_suffix(".log").read_text()
    workers = train_workers(three_nodes)
    groups = {worker["placement_group_id"] for worker in workers}  # each training is placed anew
    assert len(workers) == 2 * len(groups)
    assert len({(worker["placement_group_id"], worker["node_id"]) for worker in workers}) == len(workers)

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
    while not joint_checkpoint(run):
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
    begun = [line["from_step"] for line in read_attempts(training_of(run / "dfcp")) if "from_step" in line]
    assert len(begun) > 1 and begun[-1] > 0, "it went on from a checkpoint, not from the start"
    done = [line["step"] for line in steps(run)]
    assert done == [*range(1, max(done) + 1)], "every step was done"
    assert max(done) > begun[-1] and max(done) % epochs == 0
    assert len(train_workers(three_nodes)) >= before + 4, "a second group of workers was started"
