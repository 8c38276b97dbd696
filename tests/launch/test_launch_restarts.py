"""Restarts as the driver tells and records them: from a training's files, and from tasks that are begun again."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

import moe_dist.terminal as terminal
from moe_dist.launch.heard import Heard
from moe_dist.launch.progress import Silence, begin_task, watch_tasks
from moe_dist.launch.restart_watch import RestartWatch
from moe_dist.record.restarts import Restart, note_attempt, note_fault, read_attempts
from moe_dist.terminal import Show

DIED = {"kind": "worker died", "what": "the worker of rank 1 (process 7 on node-a) died", "ranks": [1], "final": False}


class Training:
    """A training's files as ranks and controller write them, watched with a clock that the test sets."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.clock = folder, 0.0
        self.output = io.StringIO()
        self.restarts: list[Restart] = []
        note_attempt(folder, {"from_step": 0, "workers": 2})
        show = Show(Console(file=self.output, width=200))
        self.watch = RestartWatch(show, Heard(folder), "the training of dfcp", 2, self.record, lambda: self.clock)

    def record(self, restart: Restart) -> None:
        if not any(each is restart for each in self.restarts):
            self.restarts.append(restart)

    def step(self, step: int, at: float) -> None:
        self.clock = at
        (self.folder / "metrics.jsonl").write_text(json.dumps({"step": step, "time": at}) + "\n")
        self.watch.look()

    def note(self, at: float, **line: object) -> None:
        self.clock = at
        (note_fault if "what" in line else note_attempt)(self.folder, line)
        self.watch.look()


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_a_restart_is_told_and_costs_the_time_until_its_step_is_reached_again(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    assert training.restarts[0]["seconds_lost"] is None, "it is on record before it is over"
    training.note(at=115, from_step=36, workers=2)
    for step, at in ((36, 115), (41, 120), (42, 121), (43, 122)):
        training.step(step, at)
    (restart,) = training.restarts
    told = {name: restart[name] for name in ("of", "kind", "ranks", "step", "from_step", "seconds_lost")}
    assert told == {
        "of": "the training of dfcp",
        "kind": "worker died",
        "ranks": [1],
        "step": 42,
        "from_step": 36,
        "seconds_lost": 21,
    }
    assert [line.strip() for line in training.output.getvalue().splitlines()] == [
        "! the worker of rank 1 (process 7 on node-a) died, after step 42 of the training of dfcp; it is started again "
        "from its last checkpoint",
        "step 42 is reached again, from step 36: 21.0 s lost",
    ]


def test_a_training_that_goes_on_with_other_workers_tells_with_how_many(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    training.note(at=115, from_step=36, workers=1)
    training.step(50, at=120)
    training.note(at=121, kind="more room", what="the cluster has room", ranks=[], step=50, final=False)
    training.note(at=130, from_step=50, workers=2)
    training.step(51, at=131)
    assert [each["workers"] for each in training.restarts] == [1, 2]
    told = [line.strip() for line in training.output.getvalue().splitlines() if line.endswith(" on")]
    assert told == [
        "the training of dfcp has 1 worker from step 36 on",
        "the training of dfcp has 2 workers from step 50 on",
    ]


def test_lines_from_before_the_restart_are_not_taken_for_later_ones(training: Training) -> None:
    """The log is cut back a while after the fault is noted: until then it has the step already."""
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    training.step(42, at=108)
    assert training.restarts[0]["seconds_lost"] is None


def test_a_second_fault_before_the_first_is_caught_up_with_does_not_count_seconds_twice(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    training.note(at=115, from_step=36, workers=2)
    training.step(39, at=118)
    training.note(at=119, **DIED, step=39)
    training.note(at=125, from_step=36, workers=2)
    training.step(39, at=126)
    training.step(42, at=130)
    # From step 42 to the last step before the second fault, and from there until step 42 is reached again.
    assert [each["seconds_lost"] for each in training.restarts] == [18, 12]


def test_a_training_that_ends_first_has_cost_the_time_until_then(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    training.clock = 130
    training.watch.ended()
    assert training.restarts[0]["seconds_lost"] == 30


def test_a_checkpoint_between_a_fault_and_its_restart_is_no_restart(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **DIED, step=42)
    training.note(at=108, saved=42, seconds=0.5)
    training.note(at=115, from_step=36, workers=2)
    training.step(42, at=120)
    assert [each["from_step"] for each in training.restarts] == [36]


def test_the_fault_that_ends_a_training_is_no_restart(training: Training) -> None:
    training.step(42, at=100)
    training.note(at=107, **(DIED | {"final": True}), step=42)
    assert training.restarts == [] and training.output.getvalue() == ""
    assert training.watch.last_fault == "the worker of rank 1 (process 7 on node-a) died, after step 42"


def test_faults_of_an_earlier_run_are_not_told_again(training: Training) -> None:
    note_fault(training.folder, DIED | {"step": 3})
    said = io.StringIO()
    RestartWatch(Show(Console(file=said)), Heard(training.folder), "it", 2, training.record).look()
    assert said.getvalue() == "" and training.restarts == []


def test_an_attempt_that_a_power_cut_left_unfinished_is_not_read(tmp_path: Path) -> None:
    note_attempt(tmp_path, {"from_step": 0})
    with (tmp_path / "attempts.jsonl").open("a") as file:
        file.write('{"from_st')
    assert [line["from_step"] for line in read_attempts(tmp_path)] == [0]


def test_a_task_that_is_begun_again_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "POLL_SECONDS", 0.001)
    output, restarts = io.StringIO(), []
    with watch_tasks(Show(Console(file=output, width=200)), tmp_path, 2, restarts.append) as folder:
        begin_task(folder / "0.json")
        begin_task(folder / "1.json")
        begin_task(folder / "1.json")
    (restart,) = restarts
    assert (restart["of"], restart["kind"]) == ("task 1", "worker died") and restart["seconds_lost"] >= 0
    assert output.getvalue().count("the worker of task 1 (process ") == 1
    assert output.getvalue().strip().endswith("died; it is begun again")
    assert not folder.exists()


def test_silence_is_told_where_it_is_long_for_this_training() -> None:
    clock = [0.0]
    silence = Silence(lambda: clock[0], lambda: 1_000_000.0 + clock[0])

    def heard(step: int, at: float) -> str:
        clock[0] = at
        return silence.heard({"step": step})

    assert heard(1, 0) == "" and heard(1, 14) == ""
    assert heard(1, 16).endswith("(16.0 s), the last one heard of is 1")
    assert heard(2, 20) == "", "from now on, 20 s between steps are known to happen"
    assert heard(2, 79) == ""
    assert "(61.0 s)" in heard(2, 81)


def test_a_stalled_training_shows_no_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "LINE_EVERY_SECONDS", 0.0)
    output = io.StringIO()
    show = Show(Console(file=output, width=120))
    with show.working("train"):
        show.update(25, 100, "epoch 1")
        show.stalled("no step since 12:00:00")
    lines = output.getvalue().splitlines()
    assert "left" in lines[0] and lines[1].strip() == "no step since 12:00:00"
