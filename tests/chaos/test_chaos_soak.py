"""Twenty faults, drawn by a seed, to trainings of two workers on three nodes: each ends as one that was never hit.

In four pieces of five faults. `pytest -s` prints the figures of docs/reliability.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import checkpoints_of, log_of
from s3_server import reserved_port
from safetensors.numpy import load_file
from small_jobs import quiet, traditional

from moe_dist.data.shards.build.build import build_shards
from moe_dist.job import Job, dump_job
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

import local
from soak import DRAINED, KINDS, NO_ROOM, SURVIVED_BY_RAY, Soak, mounted, plan, unmount

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1800)]

FAULTS, PIECES, SEED = 20, 4, 0
EPOCHS, STEPS_APART = 40, 30
"""240 steps; a piece's five faults come 30 steps apart, or later where the one before took longer."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a local cluster of three nodes."""
    folder = tmp_path_factory.mktemp("cluster")
    local.start(folder, nodes=3, cpus_per_node=2, port=0)
    yield folder
    local.stop(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits in shards, to be served."""
    folder = tmp_path_factory.mktemp("shards") / "digits"
    build_shards("digits", None, folder, samples_per_shard=300)
    return folder


def job_of(shards: str) -> Job:
    """Two workers, a checkpoint an epoch, and images that are fetched whenever workers start."""
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 300, "max_test_images": 60, "shards": shards}
    return traditional(epochs=EPOCHS, workers=2, data=data, checkpoint={"max_failures": 9})


def tensors(run: Path) -> dict[str, np.ndarray]:
    """All of the last checkpoint."""
    newest = newest_checkpoint(checkpoints_of(run / "traditional_moe"))
    assert newest is not None
    files = newest.glob("*.safetensors")
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


def numbers(run: Path) -> list[dict[str, float]]:
    """The log without times and rates."""
    times = ("time", "images_per_second", "step_seconds", "data_wait_seconds")
    return [
        {name: value for name, value in line.items() if name not in times} for line in log_of(run / "traditional_moe")
    ]


@pytest.fixture(scope="module")
def whole(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two workers, by the local launcher: it gives the very numbers of Ray's."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_job(job_of(str(shards)), run, "local", quiet())
    return run


@pytest.mark.parametrize("piece", range(PIECES))
def test_faults_cost_time_alone(piece: int, cluster: Path, shards: Path, whole: Path, tmp_path: Path) -> None:
    has_disk = mounted(tmp_path / "disk")
    kinds = KINDS if has_disk else tuple(kind for kind in KINDS if kind != NO_ROOM)  # as root alone
    each = FAULTS // PIECES
    drawn = plan(SEED, FAULTS, kinds)[piece * each : (piece + 1) * each]
    try:
        hit_and_compared(drawn, SEED + piece, cluster, shards, whole, tmp_path)
    finally:
        if has_disk:
            unmount(tmp_path / "disk")


def test_a_node_that_is_taken_away_is_left_with_a_checkpoint(
    cluster: Path, shards: Path, whole: Path, tmp_path: Path
) -> None:
    restarts = hit_and_compared([DRAINED], SEED, cluster, shards, whole, tmp_path)
    assert [restart["kind"] for restart in restarts] == ["preempted"]
    assert restarts[0]["from_step"] == restarts[0]["step"], "no step was done twice"


def hit_and_compared(
    drawn: Sequence[str], seed: int, cluster: Path, shards: Path, whole: Path, folder: Path
) -> list[dict[str, Any]]:
    """Train under these faults and compare with the unbroken run; the restarts on record."""
    reservation = reserved_port()
    port = reservation.getsockname()[1]
    soak = Soak(folder, cluster, shards, port, dump_job(job_of(f"http://127.0.0.1:{port}")), seed)
    try:
        soak.begin()
        caused = [soak.cause(kind, at_step=10 + STEPS_APART * number) for number, kind in enumerate(drawn)]
        assert soak.ended() == 0, soak.log.read_text()[-3000:]
        for fault in caused:
            print(fault.line())
        print(soak.log.read_text())
        record = json.loads((soak.run / "run.json").read_text())
        restarts = [restart for start in record["starts"] for restart in start.get("restarts", [])]
        for restart in restarts:
            print(f"on record: {restart}")
        assert record["starts"][-1]["status"] == "finished"
        assert len(restarts) >= sum(fault.kind in SURVIVED_BY_RAY for fault in caused), "each is on record"
        assert all(restart["seconds_lost"] is not None for restart in restarts)
        assert ("Survived: " in (soak.run / "results.md").read_text()) == bool(restarts)
        assert numbers(soak.run) == numbers(whole)
        left, right = tensors(soak.run), tensors(whole)
        assert left.keys() == right.keys()
        for name, tensor in left.items():
            assert np.array_equal(tensor, right[name], equal_nan=name.startswith("random")), name
        return restarts
    finally:
        soak.stop()
        reservation.close()
