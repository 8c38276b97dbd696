"""A node is taken away from an elastic training and given back: fewer workers, all again, and an unbroken curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_up_jobs import made_up
from run_folders import checkpoints_of, log_of
from s3_server import reserved_port
from safetensors.numpy import load_file
from small_jobs import quiet

from moe_dist.job import Job, dump_job
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
sys.path.insert(0, str(Path(__file__).parents[2] / "cluster"))

import local
from soak import DRAINED, NO_RAYLET, Soak

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(1200)]

MODEL = "made_up_gates"


def elastic_job(**changes: Any) -> Job:
    """Two workers, of which each fills a node, or one; 396 steps of two micro-batches, whoever computes them.

    So one worker adds the very two gradients that two workers have each, and the curves are equal to the last bit.
    """
    fields: dict[str, Any] = {"workers": 2, "min_workers": 1, "parallel": {"micro_batches": 2}}
    return made_up(MODEL, {"module_epochs": 1, "all_epochs": 65}, **(fields | changes))


def steps(run: Path) -> list[dict[str, Any]]:
    """The loss of each step and its terms, in the order of the log."""
    lines = [line for line in log_of(run / MODEL) if line["kind"] == "step"]
    return [{name: line[name] for name in ("step", "loss", "loss/cross_entropy", "loss/load")} for line in lines]


def tensors(run: Path) -> dict[str, np.ndarray]:
    """The last checkpoint's parameters and optimiser, without the ranks' random generators."""
    newest = newest_checkpoint(checkpoints_of(run / MODEL))
    assert newest is not None
    files = [path for path in newest.glob("*.safetensors") if not path.name.startswith("random")]
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two workers."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_job(elastic_job(min_workers=None), run, "local", quiet())
    return run


@pytest.mark.parametrize("fault", [NO_RAYLET, DRAINED])
def test_a_node_that_goes_and_comes_back_leaves_the_curve_as_it_is(
    fault: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MADE_UP_WAIT", "0.2")  # of the workers on the nodes: a node takes its time to come back
    reservation = reserved_port()
    local.start(tmp_path / "nodes", nodes=2, cpus_per_node=1, port=0)
    port = reservation.getsockname()[1]
    soak = Soak(tmp_path, tmp_path / "nodes", tmp_path, port, dump_job(elastic_job()), seed=0)
    try:
        soak.begin()
        soak.cause(fault, at_step=10)  # the node is started again at once, but comes after the workers are
        soak.wait(lambda: soak.attempts() == 3)
        assert soak.ended() == 0, soak.log.read_text()[-3000:]
        print(soak.log.read_text())
    finally:
        soak.stop()
        local.stop(tmp_path / "nodes")
        reservation.close()
    record = json.loads((soak.run / "run.json").read_text())
    gone, came = (restart for start in record["starts"] for restart in start["restarts"])
    print(gone, came)
    assert (gone["workers"], came["workers"]) == (1, 2)
    assert fault == NO_RAYLET or (gone["kind"] == "preempted" and gone["from_step"] == gone["step"])
    assert came["kind"] == "more room" and came["what"] == "the cluster has room for 2 workers instead of 1"
    assert came["from_step"] == came["step"], "all steps until then are kept"
    assert "has 1 worker from step" in soak.log.read_text()
    assert steps(soak.run) == steps(whole)
    left, right = tensors(soak.run), tensors(whole)
    assert left.keys() == right.keys()
    assert all(np.array_equal(tensor, right[name]) for name, tensor in left.items())
