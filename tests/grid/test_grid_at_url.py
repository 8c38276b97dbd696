"""A grid at a URL leaves what one in a folder leaves, is gone on with elsewhere, and its cells share there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from s3_server import serving_s3
from small_grids import small_grid
from small_jobs import quiet

from moe_dist.cli.report import write_report
from moe_dist.grid import beside
from moe_dist.grid.cells import cells_of
from moe_dist.grid.run import run_grid
from moe_dist.grid.state import log_file
from moe_dist.job import Job
from moe_dist.record.run_place import RunPlace, run_place
from moe_dist.run.run import choose_run_place
from moe_dist.terminal import Show

TWO = {"data": {}, "seeds": [0]}


def on_machine(node: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> RunPlace:
    """The place of a grid at a URL on a machine that keeps its files in `node`."""
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(node))
    return run_place("--out")(url)


def run(job: Job, place: RunPlace, *, resume: bool = False, launcher: str = "local") -> str:
    """Run the grid as the command does; what it prints."""
    console = Console(record=True, width=300, file=None)
    chosen = choose_run_place(job, place, resume)
    with chosen.kept(Show(console), grid=True) as mirror:
        run_grid(job, chosen.folder, launcher, Show(console), mirror)
    return console.export_text()


def without_times(csv: Path) -> list[str]:
    """The lines of a grid's table but for those of figures that no two runs share."""
    return [line for line in csv.read_text().splitlines() if "seconds" not in line and "latency" not in line]


def checkpoints(folder: Path) -> set[str]:
    return {path.parent.relative_to(folder).as_posix() for path in folder.rglob("checkpoint_*/state.json")}


@pytest.mark.slow
def test_a_grid_at_a_url_is_gone_on_with_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, store = small_grid(TWO), tmp_path / "store/x"
    run_grid(job, tmp_path / "folder", "local", quiet())
    run(job, on_machine(tmp_path / "one", monkeypatch, f"file://{store}"))
    assert without_times(store / "results.csv") == without_times(tmp_path / "folder/results.csv")
    assert checkpoints(store) == checkpoints(tmp_path / "folder")

    wide = store / "cells/wide.digits.seed0"
    shutil.rmtree(wide)  # killed on the first machine before anything of it had arrived
    (store / "cells/wide.digits.seed0.json").write_text('{"status": "unfinished", "asked": {}}')
    other = on_machine(tmp_path / "other", monkeypatch, f"file://{store}")
    said = run(job, other, resume=True)
    assert said.count("kept from an earlier run") == 1
    assert without_times(store / "results.csv") == without_times(tmp_path / "folder/results.csv")
    assert checkpoints(store) == checkpoints(tmp_path / "folder")
    assert {name.split("/")[1] for name in checkpoints(other.folder)} == {"wide.digits.seed0"}

    seen = on_machine(tmp_path / "third", monkeypatch, f"file://{store}")
    with seen.at_hand("checkpoints"):
        write_report([seen.folder], None, tmp_path / "record.json")
    assert all(cell["status"] == "finished" for cell in json.loads((tmp_path / "record.json").read_text())["cells"])


@pytest.mark.slow
def test_a_cell_takes_over_what_another_machine_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And keeps all of it at its own URL."""
    store = tmp_path / "store/x"
    cells = {"once": {"checkpoint.max_failures": 1}, "twice": {"checkpoint.max_failures": 2}}
    first, both = (
        small_grid(TWO | {"changes": {"failures": changes}, "leave_out": [{"method": ["wide"]}], "against": {}})
        for changes in ({"once": cells["once"]}, cells)
    )
    run(first, on_machine(tmp_path / "one", monkeypatch, f"file://{store}"))
    said = run(both, on_machine(tmp_path / "other", monkeypatch, f"file://{store}"), resume=True)
    assert "taken over from narrow.digits.once.seed0" in said
    kept = {name.split("/", 2)[2] for name in checkpoints(store)}
    assert len(checkpoints(store)) == 2 * len(kept) > 0
    logs = {path.read_text() for path in store.glob("cells/*/sparse_moe/trainings/*/metrics.jsonl")}
    assert len(logs) == 1


class OtherNodes:
    """Stands for a cluster: each cell runs at once, in this process, as if on a node of its own."""

    one_waits = False

    def __init__(self, caches: Path) -> None:
        self._caches = caches
        self._done: dict[str, str] = {}

    def have_room(self, job: Job) -> bool:
        return not self._done

    def start(self, name: str, job: Job, function: Callable[..., None], *arguments: Any) -> None:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("MOE_DIST_NODE_CACHE", str(self._caches / name))
            function(*arguments)
        self._done[name] = ""

    def ended(self, seconds: float) -> dict[str, str]:
        done, self._done = self._done, {}
        return done


@pytest.mark.slow
def test_cells_on_other_nodes_leave_their_table_with_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of the three are one training: it is made once, on the first node."""
    changes = {"failures": {"once": {"checkpoint.max_failures": 1}, "twice": {"checkpoint.max_failures": 2}}}
    job = small_grid(TWO | {"changes": changes, "leave_out": [{"method": ["wide"], "failures": ["twice"]}]})
    nodes, store = OtherNodes(tmp_path / "nodes"), tmp_path / "store/x"
    monkeypatch.setattr(beside, "ray_runs", lambda jobs, show: nullcontext(nodes))
    driver = on_machine(tmp_path / "driver", monkeypatch, f"file://{store}")
    assert run(job, driver, launcher="ray").count("of 3\n") == 3
    assert len(list((tmp_path / "nodes").iterdir())) == 3 and not checkpoints(driver.folder)
    cells = json.loads((driver.folder / "cells/wide.digits.once.seed0.json").read_text())
    assert cells["status"] == "finished"
    assert (
        "taken over from narrow.digits.once.seed0"
        in (driver.folder / "cells/narrow.digits.twice.seed0.log").read_text()
    )
    assert (driver.folder / "results.csv").read_text() == (store / "results.csv").read_text()
    assert "finished" in (driver.folder / "results.csv").read_text()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with serving_s3("grids"):
        yield "s3://grids"


@pytest.mark.slow
def test_cells_beside_each_other_on_ray_are_kept_in_an_object_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = small_grid(TWO | {"seeds": [0, 1]})
    one = on_machine(tmp_path / "one", monkeypatch, f"{bucket}/x")
    run(job, one, launcher="ray")
    other = on_machine(tmp_path / "other", monkeypatch, f"{bucket}/x")
    assert run(job, other, resume=True, launcher="ray").count("kept from an earlier run") == 4
    assert without_times(other.folder / "results.csv") == without_times(one.folder / "results.csv")
    assert checkpoints(one.folder) and not checkpoints(other.folder)
    assert all(log_file(other.folder, cell).is_file() for cell in cells_of(job))
