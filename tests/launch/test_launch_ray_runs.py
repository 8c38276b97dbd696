"""A grid on an embedded Ray: cells of one and of two workers, one that fails, and one whose process is lost."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from small_jobs import quiet, traditional

from moe_dist.grid.cells import cells_of
from moe_dist.grid.run import run_grid
from moe_dist.grid.state import state_of
from moe_dist.launch.ray_runs import Loss, ray_runs
from tests.grid.small_grids import SPARSE, small_grid

pytestmark = pytest.mark.slow

WAYS: dict[str, Any] = {
    "one": {},
    "half": {"resources.cpus_per_worker": 0.5, "resources.cpus_per_task": 0.5},
    "two": {"workers": 2, "parallel.expert": 2},
    "wild": {"method.optimiser.learning_rate": 1e30},
    "gpu": {"resources.gpus_per_worker": 1},
}


def test_cells_that_need_different_resources_run_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    job = small_grid({"data": {}, "seeds": [0], "against": {}, "changes": {"way": WAYS}}, methods={"narrow": SPARSE})
    run_grid(job, tmp_path / "grid", "ray", quiet())
    states = {cell.at["way"]: state_of(tmp_path / "grid", cell) for cell in cells_of(job)}
    ways = {way: state.status for way, state in states.items()}
    assert ways == {"one": "finished", "half": "finished", "two": "finished", "wild": "failed", "gpu": "failed"}
    assert "is nan at step" in states["wild"].reason and "the job asks for a GPU" in states["gpu"].reason
    rows = [row for row in csv.DictReader((tmp_path / "grid/results.csv").open()) if row["status"] == "finished"]
    assert len({row["mean"] for row in rows if row["metric"] == "top1"}) == 1


def test_a_run_whose_process_is_killed_is_told_in_a_sentence_each_time(capfd: pytest.CaptureFixture[str]) -> None:
    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    job, losses = traditional(checkpoint={"max_failures": 1}), list[Loss | None]()
    with ray_runs([job], quiet()) as runs:
        runs.start("one", job, die)
        while len(losses) < 2:
            losses += runs.ended(1.0).values()
    first, last = losses
    died = "its process died (killed, or memory ran out)"
    assert first and first.again and first.what == f"{died}; it is run again from what it has saved"
    assert (
        last and not last.again and last.what.startswith(f"{died}, more often than checkpoint.max_failures = 1 allows")
    )
    assert "The worker died unexpectedly" in last.said and "worker died" not in last.what
    assert "retried" not in "".join(capfd.readouterr())
