"""A submitted job whose run and shards lie on an S3 server, which fails for a while: the nodes share no disk."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from run_folders import log_of
from running_cluster import RunningCluster, start_cluster
from s3_server import SECRET, S3Server, serving_s3
from small_jobs import traditional
from test_cluster_training import train_workers

from moe_dist.job import dump_job, parse_job
from moe_dist.places import RECORD

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

AWAY_SECONDS = 10


@pytest.fixture(scope="module")
def store() -> Iterator[S3Server]:
    with serving_s3("bucket") as server:
        yield server


@pytest.fixture(scope="module")
def nodes(store: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """Two nodes that know the store, each with a folder of its own."""
    yield from start_cluster(tmp_path_factory.mktemp("cluster"), nodes=2)


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log_of(run / "traditional_moe") if line["kind"] == "step"]


def stored(prefix: str) -> list[str]:
    found = boto3.client("s3").list_objects_v2(Bucket="bucket", Prefix=prefix)
    return [entry["Key"] for entry in found.get("Contents", [])]


def a_checkpoint_is_being_saved() -> bool:
    """Whether files of the first checkpoint have arrived."""
    return any("/experts_" in name for name in stored("runs/x"))


def test_two_nodes_without_a_shared_disk_and_a_store_that_is_away(
    nodes: RunningCluster, store: S3Server, tmp_path: Path
) -> None:
    job, out = tmp_path / "small.yaml", "s3://bucket/runs/x"
    job.write_text(dump_job(traditional(resources={"cpus_per_worker": 2})))
    command = [sys.executable, "-m", "moe_dist.cli"]
    submit = [*command, "submit", str(job), "--follow", "--address", nodes.cluster.dashboard, "--out", out]
    submit += ["--set", "workers=2", "--set", "parallel.expert=2"]
    log = tmp_path / "submit.log"
    with log.open("w") as file:
        following = subprocess.Popen(submit, env=nodes.environment(), stdout=file, stderr=file)
    while not a_checkpoint_is_being_saved():
        assert following.poll() is None, log.read_text()
        time.sleep(0.1)
    store.be_away(AWAY_SECONDS).join()
    assert following.wait() == 0, log.read_text()

    assert len({worker["node_id"] for worker in train_workers(nodes)}) == 2
    for number in (0, 1):  # each node wrote into its own folder
        assert list(
            nodes.folder.glob(f"node-{number}/runs/*/x/traditional_moe/trainings/*/checkpoints/checkpoint_*/experts_*")
        )
    assert any(name.startswith("runs/cache/shards/digits") for name in stored("runs/cache"))

    here = nodes.environment(token=False) | {"MOE_DIST_NODE_CACHE": str(tmp_path / "here")}
    subprocess.run([*command, "report", out], env=here, check=True, capture_output=True)
    (run,) = (tmp_path / "here/runs").glob("*/x")
    assert json.loads((run / RECORD).read_text())["status"] == "finished"
    near = tmp_path / "near"
    alone = [*command, "run", str(job), "--launcher", "local", "--out", str(near)]
    environment = here | {"MOE_DIST_CACHE": str(tmp_path / "cache")}
    subprocess.run(alone, env=environment, check=True, capture_output=True)
    expected, found = losses(near), losses(run)
    assert len(expected) == len(found) > 10
    assert max(abs(one - two) for one, two in zip(expected[:10], found[:10])) < 1e-5

    again = subprocess.run([*submit, "--resume"], env=nodes.environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "kept from an earlier run" in again.stdout
    assert SECRET not in log.read_text() + again.stdout


def test_cells_on_nodes_without_a_shared_disk_end_in_one_table(nodes: RunningCluster, tmp_path: Path) -> None:
    job, out = tmp_path / "grid.yaml", "s3://bucket/runs/grid"
    seeds = {"seeds": [0, 1, 2], "metrics": ["top1"]}
    content = traditional(epochs=1, resources={"cpus_per_worker": 2}).model_dump(mode="json")
    content |= {"kind": "reproduce", "method": None, "methods": {"moe": content["method"]}, "grid": seeds}
    job.write_text(dump_job(parse_job(content, "grid.yaml")))
    submit = [sys.executable, "-m", "moe_dist.cli", "submit", str(job), "--follow", "--out", out]
    submit += ["--address", nodes.cluster.dashboard]
    done = subprocess.run(submit, env=nodes.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    states = [name for name in stored("runs/grid/cells/") if name.count("/") == 3 and name.endswith(".json")]
    assert len(states) == 3 and "runs/grid/results.csv" in stored("runs/grid/results")
    again = subprocess.run([*submit, "--resume"], env=nodes.environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stdout.count("kept from an earlier run") == 3
