"""`moe-dist top`: what it reads of a run directory, and what it shows."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.errors import UserError
from moe_dist.history.top import run_now, screen
from moe_dist.record.restarts import restart

NOW = 1_800_000_000.0
STEP = {"kind": "step", "stage": "joint", "epoch": 2, "step": 42, "of_steps": 60, "loss": 0.125, "time": NOW - 4}
STEP |= {"images_per_second": 812.4, "step_seconds": 0.05, "data_wait_seconds": 0.01, "gradient_norm": 0.8213}
EPOCH = {"kind": "epoch", "stage": "joint", "epoch": 1, "step": 40, "of_steps": 60, "loss": 0.2, "time": NOW - 9}
EPOCH |= {"load/expert_0": 0.7, "load/expert_1": 0.1, "load/expert_2": 0.2}


def write_run(run: Path, **record: Any) -> Path:
    """A run of one model, which is in mid training."""
    training = run / "dfcp" / "trainings" / "0a1b"
    (training / "checkpoints" / "checkpoint_00000036").mkdir(parents=True)
    os.utime(training / "checkpoints" / "checkpoint_00000036", (NOW - 20, NOW - 20))
    (training / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (EPOCH, STEP)) + '{"kind": "st')
    start = {"time": NOW - 90, "host": "elsewhere", "status": "running", "restarts": record.pop("restarts", [])}
    content = {
        "status": "running",
        "started": "2027-01-15T08:00:00",
        "launcher": "ray",
        "workers": 2,
        "starts": [start],
    }
    (run / "run.json").write_text(json.dumps(content | {"starts": [start]} | record))
    return run


def shown(run: Path, moment: float = NOW) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=140).print(screen(run_now(run), moment))
    return [line.rstrip() for line in output.getvalue().splitlines() if line.strip()]


def test_a_training_in_words(tmp_path: Path) -> None:
    assert shown(write_run(tmp_path / "run")) == [
        f"{tmp_path / 'run'}  running, for 90.0 s",
        "  ray, 2 workers, begun 2027-01-15 08:00",
        "dfcp",
        "  stage   joint, epoch 3",
        f"  step    {'█' * 17}{'░' * 7}  42 of 60, 4.0 s ago",
        "  loss    0.1250, gradient norm 0.821",
        "  speed   812 images/s, 50.0 ms a step, 20% of it waiting for data",
        "  experts █▂▃  10.0% to 70.0% of the gate's weight (validation)",
        "  saved   checkpoint_00000036, 20.0 s ago",
    ]


def test_a_silent_training_is_called_that_and_a_finished_one_is_not(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert any(line.startswith("  !       no step since") for line in shown(run, NOW + 60))
    write_run(tmp_path / "done", status="finished")
    assert not any("no step since" in line for line in shown(tmp_path / "done", NOW + 60))


def test_a_run_from_before_steps_were_timed_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    line = {name: value for name, value in STEP.items() if name not in ("step_seconds", "data_wait_seconds")}
    (run / "dfcp" / "trainings" / "0a1b" / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    assert "  speed 812 images/s" in shown(run)


def test_restarts_tasks_and_searches(tmp_path: Path) -> None:
    died = [restart("it", "worker died", f"worker {number} died", seconds_lost=10.0, time=NOW) for number in range(4)]
    run = write_run(tmp_path / "run", restarts=died)
    (run / ".progress").mkdir()
    (run / ".progress" / "0.json").write_text("[1, 1]")
    (run / ".progress" / "1.json").write_text("[1, 4]")
    (run / "dfcp" / "search").mkdir()
    told = [{"study": "0", "told": [{}, {}], "at": 1}, {"study": "0", "told": [{}], "at": 2, "again": [1]}]
    compared = {"study": "0", "told": [{}, {}], "at": 3, "compared": 7}
    journal = [{"journal": 1, "search": {}}, {"study": "0", "asked": []}, *told, compared]
    (run / "dfcp" / "search" / "experts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in journal))
    text = "\n".join(shown(run))
    assert "4, 40.0 s lost" in text and "worker 3 died" in text and "worker 0 died" not in text and "1 before" in text
    assert "1.2 of 2 begun are done" in text
    assert "search of dfcp, experts" in text and "2 trials have an outcome" in text


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is there"):
        run_now(tmp_path)
    write_run(tmp_path / "cells" / "one")
    with pytest.raises(UserError, match=r"is a grid; give one of its cells, as .*cells/one, the latest"):
        run_now(tmp_path)


def test_once_prints_and_leaves_and_so_does_a_run_that_has_only_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "dfcp" / "trainings" / "0a1b" / "metrics.jsonl").write_text("")
    ended = CliRunner().invoke(app, ["top", str(run), "--once"])
    assert ended.exit_code == 0
