"""A grid of 12 cells over three nodes, killed five times: its drivers, two workers and a node."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from running_cluster import RunningCluster
from small_jobs import quiet

from moe_dist.grid.run import run_grid
from moe_dist.job import load_job
from tests.grid.small_grids import DATA, SPARSE

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

CELL, DRIVER, RAYLET = b"ray::run_packed", b"moe_dist.cli\0run", b"/raylet"
GRID: dict[str, Any] = {
    "name": "killed-grid",
    "kind": "reproduce",
    "data": DATA,
    "methods": {"narrow": SPARSE | {"epochs": 30}, "wide": SPARSE | {"epochs": 30, "hidden": 16}},
    "resources": {"cpus_per_task": 2},  # a cell at a time on each node: not all of them end together
    "grid": {"data": {"all": {}, "half": {"max_train_images": 100}}, "seeds": [0, 1, 2], "metrics": ["top1"]},
}


def submission(nodes: RunningCluster, job_path: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """`moe-dist submit --follow` of the job, under way; its output goes to a file beside `out`."""
    command = [sys.executable, "-m", "moe_dist.cli", "submit", str(job_path), "--follow", *more]
    command += ["--address", nodes.cluster.dashboard, "--out", str(out)]
    with out.with_suffix(".log").open("a") as log:
        return subprocess.Popen(command, env=nodes.environment(), stdout=log, stderr=log, text=True)


def finished(out: Path) -> dict[str, int]:
    """The finished cells, and how often each was started."""
    states = {path.stem: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    done = [name for name, state in states.items() if state["status"] == "finished"]
    return {name: len(json.loads((out / "cells" / name / "run.json").read_text())["starts"]) for name in done}


def processes_of(nodes: RunningCluster, words: bytes, below: slice = slice(None)) -> Iterator[int]:
    """The ids of the cluster's processes whose command line holds these words, of those nodes."""
    import processes

    for process in processes.descendants([node.process for node in nodes.cluster.nodes[below]]):
        try:
            line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        except OSError:
            continue
        if words in line and (words != RAYLET or line.split(b"\0")[0].endswith(RAYLET)):
            yield process.pid


def test_killed_five_times_finished_cells_stay_and_the_table_is_the_same(
    three_nodes: RunningCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_path, out, chance = tmp_path / "grid.yaml", tmp_path / "grid", random.Random()
    job_path.write_text(yaml.safe_dump(GRID))
    kinds = ["driver", "worker", "node", "worker", "driver"]
    chance.shuffle(kinds)
    following = submission(three_nodes, job_path, out)
    before: dict[str, int] = {}
    for number, kind in enumerate(kinds):
        while len(finished(out)) < 1 + 3 * number // 2:  # at the last kill, five are not
            assert following.poll() is None, (kinds, out.with_suffix(".log").read_text())
            time.sleep(0.2)
        time.sleep(chance.uniform(0, 3))
        before = finished(out)
        where = {"driver": DRIVER, "worker": CELL, "node": RAYLET}[kind]
        nodes = slice(1, None) if kind == "node" else slice(None)  # the head is the cluster
        while not (victims := [*processes_of(three_nodes, where, nodes)]):
            assert following.poll() is None, (kinds, out.with_suffix(".log").read_text())
            time.sleep(0.2)
        os.kill(chance.choice(victims), signal.SIGKILL)
        if kind == "driver":
            following.wait()
            following = submission(three_nodes, job_path, out, "--resume")
            time.sleep(1)
        assert before.items() <= finished(out).items()
    assert following.wait() == 0, (kinds, out.with_suffix(".log").read_text())
    ended = finished(out)
    assert len(ended) == 12 and before.items() <= ended.items(), "no finished cell was started again"

    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)  # longer than these cells
    run_grid(load_job(job_path), tmp_path / "unbroken", "local", quiet())
    assert (out / "results.csv").read_text() == (tmp_path / "unbroken" / "results.csv").read_text()
