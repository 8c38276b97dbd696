"""kill -9 of a grid in a cell and in its report: gone on with, the same table, and no finished cell is run again."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_jobs import quiet

import moe_dist.grid.report as grid_report
import moe_dist.train.loop as loop
from moe_dist.grid.cells import cells_of
from moe_dist.grid.run import run_grid
from tests.grid.small_grids import small_grid

pytestmark = pytest.mark.chaos

FORK = multiprocessing.get_context("fork")  # a child has everything imported
CELLS = [cell.name for cell in cells_of(small_grid())]


@pytest.fixture(autouse=True)
def without_pages_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than these cells."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def run(folder: Path, until: Callable[[], bool] = lambda: False) -> bool:
    """Run the grid in a process, which is killed when `until` holds; whether it was."""
    process = FORK.Process(target=run_grid, args=(small_grid(), folder, "local", quiet()))
    process.start()
    killed = False
    while process.is_alive() and not killed:
        killed = until()
        time.sleep(0.001)
    if killed:
        process.kill()
    process.join()
    assert killed or process.exitcode == 0
    return killed


def never_past(patch: pytest.MonkeyPatch, owner: Any, name: str, at: Callable[..., bool]) -> None:
    """Hold a process up in a function, at the call for which `at` is true: it is killed there, if not before."""
    real = getattr(owner, name)

    def held(*given: Any) -> Any:
        if at(*given):
            threading.Event().wait()
        return real(*given)

    patch.setattr(owner, name, held)


def figures(folder: Path) -> tuple[str, str]:
    """The table's figures to the last digit, and its LaTeX without times."""
    latex = re.sub(r"[\d.]+ (s|min|h)\b", "", (folder / "results.tex").read_text())
    return (folder / "results.csv").read_text(), latex


def starts(folder: Path) -> dict[str, int]:
    """How often each finished cell was started."""
    records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("cells/*/run.json")}
    return {name: len(record["starts"]) for name, record in records.items() if record["status"] == "finished"}


def test_killed_in_a_cell_and_in_the_report_it_ends_with_the_same_table(tmp_path: Path) -> None:
    assert not run(tmp_path / "whole")
    folder = tmp_path / "grid"
    log = f"cells/{CELLS[4]}/*/trainings/*/metrics.jsonl"
    steps = itertools.count(1)
    with pytest.MonkeyPatch.context() as patch:
        never_past(patch, loop, "train_step", lambda *given: next(steps) == 36 + 12)  # after 12 + 6 + 12 + 6, the last
        assert run(folder, lambda: any(path.stat().st_size for path in folder.glob(log)))
    before = starts(folder)
    assert set(before) == set(CELLS[:4])
    with pytest.MonkeyPatch.context() as patch:
        never_past(patch, grid_report, "write_text", lambda path, text: path.suffix == ".tex")
        assert run(folder, (folder / "results.csv").exists), "killed between two files of the report"
    assert set(starts(folder)) == set(CELLS)
    assert not run(folder)
    after = starts(folder)
    assert {name: after[name] for name in before} == before, "no finished cell is run again"
    assert after[CELLS[4]] == 2
    assert figures(folder) == figures(tmp_path / "whole")
