"""What a driver hears of a training whose first rank is on a node that shares no disk with it."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import small_jobs
import torch
from rich.console import Console

import moe_dist.launch.heard as heard_module
from moe_dist.launch.heard import Heard
from moe_dist.launch.restart_watch import RestartWatch
from moe_dist.record.mirror import Mirror
from moe_dist.record.restarts import Restart, note_attempt, note_fault, saves
from moe_dist.terminal import Show
from moe_dist.train.store_worker import StoreWorker
from moe_dist.train.task import TrainingTask


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainingTask:
    """The task on the driver's node, which looks at the URL whenever it is asked."""
    monkeypatch.setattr(heard_module, "EVERY_SECONDS", 0.0)
    run = tmp_path / "here/x"
    task = TrainingTask(small_jobs.traditional(), "small", run, tmp_path, "", run / "small/trainings/abc")
    task.folder.mkdir(parents=True)
    return replace(task, url=f"file://{tmp_path}/store")


@pytest.fixture
def there(here: TrainingTask, tmp_path: Path) -> TrainingTask:
    """The task on the node of rank 0."""
    run = tmp_path / "there/x"
    task = replace(here, run=run, folder=run / "small/trainings/abc")
    task.folder.mkdir(parents=True)
    return task


def push(here: TrainingTask, there: TrainingTask) -> None:
    """Let both nodes push what is theirs."""
    assert here.url is not None
    Mirror(here.run, here.url).push()
    with StoreWorker(there, 0, 1, torch.device("cpu"), deepspeed=False).keeping_log():
        pass


def test_before_rank_0_has_pushed_nothing_is_heard(here: TrainingTask) -> None:
    heard = Heard.of(here)
    assert (heard.newest(), heard.attempts(), heard.faults()) == (None, [], [])


def test_a_restart_is_recorded_with_what_rank_0_told_on_its_node(here: TrainingTask, there: TrainingTask) -> None:
    restarts: list[Restart] = []
    show = Show(Console(file=io.StringIO()))
    watch = RestartWatch(show, Heard.of(here), "the training", 1, lambda each: restarts.append(dict(each)))
    note_attempt(there.folder, {"from_step": 0, "workers": 1})
    (there.folder / "metrics.jsonl").write_text(json.dumps({"step": 42, "time": 1.0}) + "\n")
    push(here, there)
    watch.look()
    note_fault(here.folder, {"kind": "worker died", "what": "it died", "ranks": [0], "step": 42, "final": False})
    note_attempt(there.folder, {"from_step": 36, "workers": 1})
    push(here, there)
    watch.look()
    (there.folder / "metrics.jsonl").write_text(json.dumps({"step": 43, "time": 2.0}) + "\n")
    push(here, there)
    watch.look()
    assert restarts[-1]["from_step"] == 36 and restarts[-1]["seconds_lost"] > 0


def test_the_driver_gets_rank_0_s_lines_and_keeps_its_own(here: TrainingTask, there: TrainingTask) -> None:
    note_fault(here.folder, {"what": "first"})
    note_attempt(there.folder, {"saved": 6, "seconds": 0.5})
    push(here, there)
    note_fault(here.folder, {"what": "second"})
    here.fetch_outputs()
    assert saves(here.folder) == [0.5]
    assert [line["what"] for line in Heard.of(here).faults()] == ["first", "second"]
