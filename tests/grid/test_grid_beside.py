"""Cells beside each other: whose turn it is, what they share, and how one ends, on a stand-in for Ray."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from small_grids import SPARSE, small_grid
from small_jobs import quiet

import moe_dist.grid.beside as grid_beside
from moe_dist.grid.beside import Turns
from moe_dist.grid.cells import cells_of
from moe_dist.grid.opened import Opened, files_made
from moe_dist.grid.run import run_grid
from moe_dist.grid.state import log_file, note_finished, run_folder, state_of
from moe_dist.job import Job
from moe_dist.launch.ray_runs import Loss, needs

ONE_AXIS: dict[str, Any] = {"data": {}, "against": {}, "metrics": ["top1"]}


class Runs:
    """Stands for Ray: `cpus` of them, and a run ends when it is looked for."""

    def __init__(self, cpus: float, lost: Mapping[str, list[Loss]] | None = None) -> None:
        self._cpus, self._lost = cpus, lost or {}
        self.at_work: dict[str, tuple[Job, Callable[..., None], tuple[Any, ...]]] = {}
        self.started: list[str] = []
        self.most = 0

    def _taken(self) -> float:
        return sum(needs(job)["CPU"] for job, *_ in self.at_work.values())

    def have_room(self, job: Job) -> bool:
        return self._taken() + needs(job)["CPU"] <= self._cpus

    @property
    def one_waits(self) -> bool:
        return self._taken() > self._cpus

    def start(self, name: str, job: Job, function: Callable[..., None], *arguments: Any) -> None:
        self.at_work[name] = job, function, arguments
        self.started.append(name)
        self.most = max(self.most, len(self.at_work))

    def ended(self, seconds: float) -> Mapping[str, Loss | None]:
        name = next(iter(self.at_work))
        loss = self._lost[name].pop(0) if self._lost.get(name) else None
        if loss and loss.again:
            return {name: loss}
        _, function, arguments = self.at_work.pop(name)
        if not loss:
            function(*arguments)
        return {name: loss}


def turns(job: Job, folder: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch, **makes: list[str]) -> Turns:
    """The turns of a grid's cells, which make these files, by cell with `_` for dots; by default each its own."""
    monkeypatch.setattr(grid_beside, "files_made", lambda cell, _: makes.get(cell.name.replace(".", "_"), [cell.name]))
    return Turns(cells_of(job), folder, Opened(quiet()), quiet(), runs)  # type: ignore[arg-type]


def begin(them: Turns) -> None:
    """Start all that can be started now."""
    while cell := them._next():
        them._waiting.remove(cell)
        them._at_work[cell.name] = cell
        them._runs.start(cell.name, cell.job, lambda: None)


def test_cells_are_started_while_there_is_room_and_one_more_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = Runs(2)
    begin(turns(small_grid(), tmp_path, runs, monkeypatch))
    assert runs.started == [cell.name for cell in cells_of(small_grid())[:3]]


def test_a_small_cell_goes_before_a_large_one_that_there_is_no_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"one": {}, "three": {"resources.cpus_per_worker": 3}, "half": {"resources.cpus_per_worker": 0.5}}
    half = {"resources.cpus_per_task": 0.5}
    sizes["half"] |= half
    job = small_grid(ONE_AXIS | {"seeds": [0], "changes": {"size": sizes}}, methods={"narrow": SPARSE})
    runs = Runs(2)
    begin(turns(job, tmp_path, runs, monkeypatch))
    assert runs.started == ["narrow.digits.one.seed0", "narrow.digits.half.seed0", "narrow.digits.three.seed0"]


def test_who_needs_what_another_makes_waits_for_it_and_others_go_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_grid(ONE_AXIS | {"seeds": [0, 1]})
    first, second, other = "narrow.digits.seed0", "wide.digits.seed0", "narrow.digits.seed1"
    shared = "steps/codes/abc/done.json"
    runs = Runs(3)
    them = turns(
        job,
        tmp_path,
        runs,
        monkeypatch,
        narrow_digits_seed0=[shared, "trainings/a/training.json"],
        wide_digits_seed0=[shared, "trainings/b/training.json"],
    )
    begin(them)
    assert runs.started == [first, other, "wide.digits.seed1"], "the second cell waits for the first"
    runs.at_work.pop(other)
    begin(them)
    assert second not in runs.started
    made = tmp_path / "cells" / first / "sparse_moe" / shared
    made.parent.mkdir(parents=True)
    made.write_text("{}")
    begin(them)
    assert runs.started[-1] == second, "though the first is still at its training"


def test_equal_fingerprints_are_what_cells_wait_for(tmp_path: Path) -> None:
    """Two names of one method make the same training; another seed makes another one."""
    job = small_grid(ONE_AXIS | {"seeds": [0, 1]}, methods={"one": SPARSE, "same": SPARSE})
    opened = Opened(quiet())
    one, same, later, _ = (files_made(cell, opened) for cell in cells_of(job))
    assert one == same != later and one[0].startswith("trainings/") and one[0].endswith("/training.json")


@pytest.fixture(name="beside")
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> Callable[[Job, Path, Runs], str]:
    """Runs a grid as on Ray, on the stand-in; the page's text."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)

    def run(job: Job, folder: Path, runs: Runs) -> str:
        monkeypatch.setattr(grid_beside, "ray_runs", lambda jobs, show: nullcontext(runs))
        run_grid(job, folder, "ray", quiet())
        return (folder / "results.md").read_text()

    return run


def test_cells_in_tasks_give_what_cells_in_turn_give(tmp_path: Path, beside: Callable[[Job, Path, Runs], str]) -> None:
    """And the second of two equal cells takes the training of the first over."""
    job = small_grid(
        ONE_AXIS | {"seeds": [0]}, methods={"narrow": SPARSE, "same": SPARSE, "wide": SPARSE | {"hidden": 16}}
    )
    runs = Runs(2)
    beside(job, tmp_path / "beside", runs)
    assert runs.started == ["narrow.digits.seed0", "wide.digits.seed0", "same.digits.seed0"] and runs.most == 2
    run_grid(job, tmp_path / "in_turn", "local", quiet())
    assert (tmp_path / "beside/results.csv").read_text() == (tmp_path / "in_turn/results.csv").read_text()
    same = cells_of(job)[1]
    assert "taken over from narrow.digits.seed0" in log_file(tmp_path / "beside", same).read_text()


def test_a_cell_that_fails_or_is_lost_stops_no_other(tmp_path: Path, beside: Callable[[Job, Path, Runs], str]) -> None:
    rates = {"mild": {}, "wild": {"method.optimiser.learning_rate": 1e30}}
    job = small_grid(
        ONE_AXIS | {"seeds": [0, 1], "changes": {"rate": rates}}, methods={"narrow": SPARSE | {"epochs": 1}}
    )
    name = "narrow.digits.mild.seed0"
    losses = [
        Loss("it is run again", "The worker died", again=True),
        Loss("its process died", "And again", again=False),
    ]
    text = beside(job, tmp_path / "grid", Runs(2, {name: losses}))
    states = {cell.name: state_of(tmp_path / "grid", cell) for cell in cells_of(job)}
    assert [state.status for state in states.values()] == ["failed", "failed", "finished", "failed"]
    assert "Failed (narrow, digits, mild, seed 0): its process died." in text
    assert (tmp_path / "grid" / "cells" / f"{name}.log").read_text() == "Ray: The worker died\nRay: And again\n"
    assert "is nan at step" in states["narrow.digits.wild.seed1"].reason
    again = Runs(2)
    beside(job, tmp_path / "grid", again)
    assert sorted(again.started) == sorted(name for name, state in states.items() if state.status == "failed")


def test_a_task_that_was_lost_after_its_cell_was_finished_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cells_of(small_grid())[0]
    run_folder(tmp_path, cell).mkdir(parents=True)
    (run_folder(tmp_path, cell) / "run.json").write_text('{"seconds": 1.0}')
    note_finished(tmp_path, cell, {})
    turns(small_grid(), tmp_path, Runs(2), monkeypatch)._tell(cell, Loss("lost", "", again=False))
    assert state_of(tmp_path, cell).status == "finished"
