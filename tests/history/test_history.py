"""What runs left: listed, compared, cleaned. The runs are small trainings on digits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moe_dist.cli import app
from moe_dist.errors import UserError
from moe_dist.files import read_json, write_json
from moe_dist.history.clean import removable, remove
from moe_dist.history.compare import compare_runs
from moe_dist.history.found import find_runs, headlines, in_words, runs_table, size_of
from moe_dist.history.stored import stored_runs_table
from moe_dist.places import KILLED, RECORD
from moe_dist.record.one_driver import LOCK
from moe_dist.run.run import run_job
from moe_dist.terminal import Show, console
from tests.small_jobs import traditional


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one job: one whose epochs were changed and that went on, and one of another seed."""
    home = tmp_path_factory.mktemp("runs")
    for name, changes in {"a": {"epochs": 1}, "b": {"epochs": 1, "seed": 1}}.items():
        run_job(traditional(**changes), home / "small" / name, "local", Show(console))
    run_job(traditional(epochs=2), home / "small" / "a", "local", Show(console))
    return home


@pytest.fixture
def copied(home: Path, tmp_path: Path) -> Path:
    """A copy of the runs, to change."""
    return Path(shutil.copytree(home, tmp_path / "runs", symlinks=True))


def test_runs_are_found_with_their_figures_and_sizes(home: Path, tmp_path: Path) -> None:
    (home / "small" / "latest").unlink(missing_ok=True)
    (home / "small" / "latest").symlink_to("b")  # the link is no run of its own
    found = list(find_runs(home))
    assert [run.path.name for run in found] == ["a", "b"]
    assert all(run.status == "finished" and run.started and run.size == size_of(run.path) > 1000 for run in found)
    top1 = json.loads((home / "small" / "a" / "metrics.json").read_text())["traditional_moe/map"]
    assert found[0].figures == {"traditional_moe": f"map {100 * top1:.2f} %"}
    table = runs_table(home, found)
    assert [row.heading for row in table.rows] == ["small/b", "small/a"]  # a was begun again after b
    assert table.notes[0].startswith("2 runs, ")
    assert list(find_runs(tmp_path)) == []


def test_runs_at_a_url_are_listed_as_those_of_a_folder(home: Path) -> None:
    here, there = runs_table(home, list(find_runs(home))), stored_runs_table(f"file://{home}")
    assert there is not None
    assert [(row.heading, row.cells[:3]) for row in there.rows] == [(row.heading, row.cells[:3]) for row in here.rows]
    assert there.title == f"Runs in file://{home}"
    listed = CliRunner().invoke(app, ["runs", "list", f"file://{home}/small/a"])
    assert listed.exit_code == 0 and "finished" in listed.output
    assert stored_runs_table(f"file://{home}/nothing") is None


def test_a_grid_is_one_line(copied: Path) -> None:
    grid = copied / "grid"
    (grid / "cells").mkdir(parents=True)
    (grid / "job.yaml").write_text("name: grid\n")
    shutil.move(copied / "small" / "a", grid / "cells" / "one")
    shutil.move(copied / "small" / "b", grid / "cells" / "two")
    record = read_json(grid / "cells" / "two" / RECORD)
    write_json(grid / "cells" / "two" / RECORD, record | {"status": KILLED})
    (found,) = find_runs(copied)
    assert found.path == grid and found.status == "1 of 2 begun cells"
    assert found.finished == [grid / "cells" / "one"]


def test_an_empty_record_is_told_and_hides_no_other_run(copied: Path) -> None:
    (copied / "small" / "a" / RECORD).write_text("")
    assert [run.status for run in find_runs(copied)] == ["unreadable", "finished"]


def test_settings_that_differ_stand_beside_the_results(home: Path) -> None:
    settings, results = compare_runs([home / "small" / "a", home / "small" / "b"])
    rows = {row.heading: row.cells for row in settings.rows}
    assert rows["method.epochs"] == ("2", "1") and rows["seed"] == ("0", "1")
    assert set(rows) <= {"method.epochs", "seed", "(test images)"}
    assert [row.cells for row in results.rows if row.heading.endswith("Top-1 accuracy")]
    same, _ = compare_runs([home / "small" / "a", home / "small" / "a"])
    assert same.rows == () and same.notes == ("No setting, data or code differs.",)
    assert [column.name for column in same.columns] == ["small/a", "small/a"]


def test_what_cannot_be_compared_is_refused(home: Path) -> None:
    with pytest.raises(UserError, match="two runs or more"):
        compare_runs([home / "small" / "a"])
    with pytest.raises(UserError, match="not a run directory"):
        compare_runs([home / "small" / "a", home])


def test_superseded_results_are_removed_and_the_report_stays(copied: Path) -> None:
    what = list(removable(list(find_runs(copied)), unfinished=False))
    assert [each.path.parent.name for each in what] == ["trainings"] and what[0].run == copied / "small" / "a"
    for each in what:
        remove(each, Show(console))
    assert list(removable(list(find_runs(copied)), unfinished=False)) == []
    before = (copied / "small" / "a" / "metrics.json").read_text()
    assert CliRunner().invoke(app, ["report", str(copied / "small" / "a")]).exit_code == 0
    assert (copied / "small" / "a" / "metrics.json").read_text() == before


def test_an_unfinished_run_keeps_all_unless_it_is_asked_for(copied: Path) -> None:
    run = copied / "small" / "a"
    write_json(run / RECORD, read_json(run / RECORD) | {"status": KILLED})
    assert list(removable(list(find_runs(copied)), unfinished=False)) == []
    (whole,) = removable(list(find_runs(copied)), unfinished=True)
    assert whole.path == run and "killed" in whole.why


def test_a_run_at_work_is_left(copied: Path) -> None:
    (what,) = removable(list(find_runs(copied)), unfinished=False)
    lock = f"import fcntl, sys; f = open({str(what.run / LOCK)!r}, 'a'); fcntl.lockf(f, fcntl.LOCK_EX)"
    command = [sys.executable, "-c", f"{lock}; print(1, flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        said = CliRunner().invoke(app, ["runs", "clean", str(copied), "--yes"])
        assert said.exit_code == 0 and "at work" in " ".join(said.output.split()) and what.path.is_dir()
        other.communicate(b"")
    remove(what, Show(console))
    assert not what.path.exists()


def test_clean_asks(copied: Path) -> None:
    (what,) = removable(list(find_runs(copied)), unfinished=False)
    said = CliRunner().invoke(app, ["runs", "clean", str(copied)], input="n\n")
    assert "nothing is removed" in said.output and what.path.is_dir()
    assert CliRunner().invoke(app, ["runs", "clean", str(copied), "--yes"]).exit_code == 0
    assert not what.path.exists()


def test_headlines_are_the_first_figure_of_each_model() -> None:
    metrics = {"a/top1": 0.5, "a/map": 0.25, "b/accuracy": 0.75, "b/nmi": 0.5, "bad_samples": 3}
    assert headlines(metrics) == {"a": "map 25.00 %", "b": "accuracy 75.00 %"}
    assert headlines(None) == {}
    assert (in_words(1_234_567), in_words(2_500_000_000)) == ("1.2 MB", "2.50 GB")
