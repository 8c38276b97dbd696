"""A grid on digits: killed in the middle of a cell and of its report, gone on with, changed, with a cell that fails."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from small_grids import SPARSE, small_grid
from small_jobs import dfcp, quiet

import moe_dist.grid.cell as grid_cell
import moe_dist.grid.report as grid_report
import moe_dist.train.loop as loop
from moe_dist.errors import DiskError, UserError
from moe_dist.grid.cells import cells_of
from moe_dist.grid.grown import write_record
from moe_dist.grid.record import is_grid, read_record
from moe_dist.grid.report import build_grid_report
from moe_dist.grid.run import run_grid
from moe_dist.grid.state import state_of
from moe_dist.job import Job, parse_job
from moe_dist.places import ModelFolder
from moe_dist.run.run import run_job


@pytest.fixture(autouse=True)
def without_pages_of_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell's report takes longer than these cells."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


FEW = {"dataset": "digits", "image_size": 16, "max_train_images": 500, "max_test_images": 60}


class Killed(BaseException):
    """Stands for the end of the process."""


def run(job: Job, folder: Path) -> list[str]:
    """Run the grid; the cells that this start has run."""
    begun: list[str] = []

    def noted(job: Job, run: Path, *given: Any, **named: Any) -> Path:
        begun.append(run.name)
        return run_job(job, run, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_cell, "run_job", noted)
        try:
            run_grid(job, folder, "local", quiet())
        except Killed:
            begun[-1] += " (killed)"
    return begun


def table(folder: Path) -> tuple[str, str]:
    """The grid's figures to the last digit, without times."""
    text = (folder / "results.md").read_text().partition("**Cells**")[0]
    lines = [re.sub(r"\| [\d.]+ (s|min) \|$", "|", line) for line in text.splitlines()]
    return (folder / "results.csv").read_text(), "\n".join(line for line in lines if "are finished, in" not in line)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of the small grid: 2 methods x 2 data x 3 seeds."""
    folder = tmp_path_factory.mktemp("whole") / "grid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        begun = run(small_grid(), folder)
    assert begun == [cell.name for cell in cells_of(small_grid())] and len(begun) == 12
    return folder


def test_a_grid_leaves_its_table_and_a_run_for_every_cell(whole: Path) -> None:
    names = {path.name for path in whole.iterdir()}
    assert names == {"job.yaml", "lock", "cells", "results.md", "results.csv", "results.tex", "report.html"}
    assert is_grid(whole) and len(list((whole / "cells").glob("*/run.json"))) == 12
    rows = list(csv.DictReader((whole / "results.csv").open()))
    assert [(row["method"], row["data"], row["metric"], row["seeds"]) for row in rows][:3] == [
        ("narrow", "all", "top1", "3"),
        ("narrow", "all", "balanced_accuracy", "3"),
        ("narrow", "half", "top1", "3"),
    ]
    assert all(row["difference"] for row in rows if row["method"] == "wide")


def test_killed_in_a_cell_and_in_the_report_it_ends_with_the_same_table(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_step, real_write, folder, steps = loop.train_step, grid_report.write_text, tmp_path / "grid", [0]

    def step_or_die(*given: Any) -> Any:
        steps[0] += 1
        if steps[0] == 36 + 5:  # four cells have 12 + 6 + 12 + 6 steps
            raise Killed
        return real_step(*given)

    def write_or_die(path: Path, text: str) -> None:
        if path.suffix == ".tex":
            raise Killed
        real_write(path, text)

    all_cells = [cell.name for cell in cells_of(small_grid())]
    monkeypatch.setattr(loop, "train_step", step_or_die)
    begun = run(small_grid(), folder)
    assert begun == [*all_cells[:4], f"{all_cells[4]} (killed)"]
    done = begun[:-1]
    page = build_grid_report(folder)
    assert "This grid is not finished" in page.read_text()
    assert "not run" in (folder / "results.md").read_text() and "unfinished" in (folder / "results.md").read_text()

    monkeypatch.setattr(loop, "train_step", real_step)
    monkeypatch.setattr(grid_report, "write_text", write_or_die)
    begun = run(small_grid(), folder)
    assert begun == [*(all_cells[len(done) : -1]), f"{all_cells[-1]} (killed)"], "no finished cell is run again"
    assert not (folder / "results.tex").exists() or "unfinished" in (folder / "results.tex").read_text()

    monkeypatch.setattr(grid_report, "write_text", real_write)
    assert run(small_grid(), folder) == []
    assert table(folder) == table(whole)
    for name in ("record_a.json", "record_b.json"):
        write_record(folder if name == "record_a.json" else whole, tmp_path / name)
    ours, theirs = read_record(tmp_path / "record_a.json"), read_record(tmp_path / "record_b.json")
    for one, other in zip(ours["cells"], theirs["cells"], strict=True):
        assert (one["at"], one["predictions"], one["split"]) == (other["at"], other["predictions"], other["split"])


def test_a_changed_cell_says_what_changed_and_the_others_are_kept(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "grid"
    shutil.copytree(whole, folder)
    methods = {"narrow": SPARSE, "wide": SPARSE | {"hidden": 16, "epochs": 1}}
    changed = small_grid(methods=methods)
    cell = next(cell for cell in cells_of(changed) if cell.name == "wide.all.seed0")
    assert state_of(folder, cell).changed == ("method.epochs: 2, now 1",)
    assert run(changed, folder) == [cell.name for cell in cells_of(changed) if cell.at["method"] == "wide"]
    before, now = (
        {row["method"] + row["data"] + row["metric"]: row["mean"] for row in rows(f)} for f in (whole, folder)
    )
    assert all((before[key] == now[key]) == key.startswith("narrow") for key in before if key.endswith("top1"))
    assert run(small_grid(), folder) == [cell.name for cell in cells_of(changed) if cell.at["method"] == "wide"]
    assert table(folder) == table(whole), "the trainings of before are found again"


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").open()))


def test_other_images_are_seen_though_the_settings_are_the_same(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "grid"
    shutil.copytree(whole, folder)
    state = folder / "cells" / "narrow.all.seed1.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps(content | {"digests": content["digests"] | {"train": "of other images"}}))
    assert run(small_grid(), folder) == ["narrow.all.seed1"]
    assert table(folder) == table(whole)


def test_a_cell_that_diverges_is_shown_as_failed_and_stops_no_other(tmp_path: Path) -> None:
    rates = {"mild": {}, "wild": {"method.optimiser.learning_rate": 1e30}}
    methods = {"narrow": SPARSE | {"epochs": 1}}
    job = small_grid({"data": {}, "changes": {"rate": rates}, "seeds": [0, 1], "against": {}}, methods=methods)
    folder = tmp_path / "grid"
    assert len(run(job, folder)) == 4
    found = {row["rate"]: row for row in rows(folder) if row["metric"] == "top1"}
    assert (found["mild"]["status"], found["mild"]["seeds"]) == ("finished", "2")
    assert (found["wild"]["status"], found["wild"]["seeds"], found["wild"]["mean"]) == ("failed", "0", "")
    text = (folder / "results.md").read_text()
    assert "| wild | failed | failed |" in text
    assert "Failed (narrow, digits, wild, seed 0; narrow, digits, wild, seed 1): " in text and "is nan at step" in text
    again = run(job, folder)
    assert [name for name in again if ".mild." in name] == [] and len(again) == 2, "the failed ones are tried again"


def test_a_full_disk_is_no_failure_of_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> Path:
        raise DiskError("the disk is full")

    monkeypatch.setattr(grid_cell, "run_job", full)
    with pytest.raises(DiskError):
        run_grid(small_grid(), tmp_path / "grid", "local", quiet())
    assert state_of(tmp_path / "grid", cells_of(small_grid())[0]).status == "unfinished"


def test_a_bug_in_one_method_is_told_with_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any, **named: Any) -> Path:
        raise IndexError("list index out of range")

    monkeypatch.setattr(grid_cell, "run_job", broken)
    run_grid(small_grid(), tmp_path / "grid", "local", quiet())
    state = state_of(tmp_path / "grid", cells_of(small_grid())[0])
    assert (state.status, state.reason) == ("failed", "IndexError: list index out of range")


def test_cells_share_the_results_that_depend_on_the_same(tmp_path: Path) -> None:
    """DFCP-MoE with two lengths of its joint stage: the Siamese network, clusters and labels are made once."""
    small = dfcp(data=FEW).model_dump(mode="json")
    small["method"]["pseudo_labels"]["siamese"]["epochs"] = 8
    lengths = {"short": {}, "long": {"method.joint.epochs": 3}}
    content = {"name": "shared", "kind": "reproduce", "data": small["data"], "methods": {"dfcp": small["method"]}}
    job = parse_job(content | {"grid": {"changes": {"joint": lengths}}}, "shared.yaml")
    folder = tmp_path / "grid"
    assert run(job, folder) == ["dfcp.digits.short.seed0", "dfcp.digits.long.seed0"]
    short, long = (ModelFolder(folder / "cells" / f"dfcp.digits.{name}.seed0" / "dfcp") for name in lengths)
    steps = long.current().steps
    for name, step in steps.items():
        about, first = (json.loads((f / "done.json").read_text()) for f in (step, short.current().steps[name]))
        assert about["taken_from"] == f"dfcp.digits.short.seed0/dfcp/steps/{name}/{step.name}"
        assert about["fingerprint"] == first["fingerprint"] and "taken_from" not in first
        assert (step / "arrays.npz").samefile(short.current().steps[name] / "arrays.npz"), "a hard link"
    assert len(steps) > 4 and long.current().training != short.current().training
    write_record(folder, tmp_path / "record.json")
    one, other = read_record(tmp_path / "record.json")["cells"]
    assert one["seconds_taken_over"] == 0 < other["seconds_taken_over"]

    alone = tmp_path / "alone"
    run_job(cells_of(job)[1].job, alone, "local", quiet())
    ours, theirs = (ModelFolder(f).current().evaluation for f in (long.path, alone / "dfcp"))
    assert ours and theirs
    assert (ours / "predictions.npz").read_bytes() == (theirs / "predictions.npz").read_bytes(), "as if trained alone"


def test_a_method_of_another_name_takes_over_its_equals_training(tmp_path: Path) -> None:
    methods = {"one": SPARSE, "same": SPARSE}
    job = small_grid({"data": {}, "seeds": [0], "against": {"method": "one"}}, methods=methods)
    folder = tmp_path / "grid"
    run(job, folder)
    training = ModelFolder(folder / "cells" / "same.digits.seed0" / "sparse_moe").current().training
    assert training
    about = json.loads((training / "training.json").read_text())
    assert about["taken_from"].startswith("one.digits.seed0/") and {made["start"] for made in about["made"]} == {0}
    same = next(row for row in rows(folder) if row["method"] == "same" and row["metric"] == "top1")
    assert (same["difference"], same["p"], same["difference_test"]) == ("0.0", "1.0", "mcnemar")


def test_a_grid_does_not_go_into_a_run_nor_a_run_into_a_grid(whole: Path, tmp_path: Path) -> None:
    content = small_grid().model_dump(mode="json") | {"grid": None}
    with pytest.raises(UserError, match="run directory of another form of job, a grid, not one run"):
        run_job(parse_job(content, "x"), whole, "local", quiet())
