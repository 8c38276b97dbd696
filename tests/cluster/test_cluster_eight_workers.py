"""Eight workers on four nodes, in expert-parallel groups of two: each inside a node, and the result of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import evaluation_of, log_of, training_of
from running_cluster import RunningCluster, start_cluster
from small_jobs import quiet, traditional

from moe_dist.job import Job, dump_job
from moe_dist.record.restarts import read_attempts
from moe_dist.run.run import run_job

pytestmark = pytest.mark.slow

WORKERS, GROUP = 8, 2
EPOCHS, STEPS_AN_EPOCH = 3, 6


@pytest.fixture
def four_nodes(tmp_path: Path) -> Iterator[RunningCluster]:
    """Eight logical CPUs, on fewer cores as a rule."""
    yield from start_cluster(tmp_path / "cluster", nodes=4)


def job_of(workers: int) -> Job:
    """Ten experts, without dropout, which every rank draws for itself; the parts of a batch are the same eight."""
    parallel = {"micro_batches": WORKERS, "expert": GROUP if workers > 1 else 1}
    return traditional(workers=workers, parallel=parallel, epochs=EPOCHS)


def ranks_by_node(nodes: RunningCluster) -> dict[str, list[int]]:
    """The ranks of the only training on each node, as Ray Train's state has them."""
    request = urllib.request.Request(f"{nodes.cluster.dashboard}/api/train/v2/runs/v1")
    request.add_header("Authorization", f"Bearer {Path(nodes.cluster.token_path).read_text()}")
    with urllib.request.urlopen(request, timeout=30) as answer:
        (training,) = json.load(answer)["train_runs"]
    (attempt,) = training["attempts"]
    found: dict[str, list[int]] = {}
    for worker in attempt["workers"]:
        found.setdefault(worker["node_id"], []).append(worker["world_rank"])
    return found


def run_on(nodes: RunningCluster, job: Job, run: Path) -> None:
    """Run a job on the cluster, whose state then says which rank ran where."""
    path = run.with_suffix(".yaml")
    path.write_text(dump_job(job))
    tells = {"RAY_ADDRESS": nodes.cluster.head, "RAY_TRAIN_ENABLE_STATE_TRACKING": "1"}
    environment = nodes.environment() | tells | {"MOE_DIST_CACHE": os.environ["MOE_DIST_CACHE"]}
    command = [sys.executable, "-m", "moe_dist.cli", "run", str(path), "--out", str(run)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def steps(run: Path) -> dict[int, float]:
    """The loss of each step."""
    lines: list[dict[str, Any]] = log_of(run / "traditional_moe")
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def test_eight_workers_finish_with_the_result_of_one(four_nodes: RunningCluster, tmp_path: Path) -> None:
    eight, one = tmp_path / "eight", tmp_path / "one"
    run_on(four_nodes, job_of(WORKERS), eight)

    places = ranks_by_node(four_nodes)
    assert sorted(map(sorted, places.values())) == [[0, 1], [2, 3], [4, 5], [6, 7]], "a group is inside a node"
    (attempt,) = (line for line in read_attempts(training_of(eight / "traditional_moe")) if "saved" not in line)
    assert attempt["workers"] == WORKERS

    run_job(job_of(1), one, "local", quiet())
    found, expected = steps(eight), steps(one)
    assert list(found) == list(expected) == list(range(1, EPOCHS * STEPS_AN_EPOCH + 1))
    # The same gradients are added in another order: a difference of 1e-7, which Adam's division magnifies later.
    assert max(abs(found[step] - expected[step]) for step in range(1, 11)) < 1e-5
    labels = [np.load(evaluation_of(run / "traditional_moe") / "predictions.npz")["labels"] for run in (eight, one)]
    assert len(labels[0]) == 60 and np.array_equal(*labels), "every test image once"
