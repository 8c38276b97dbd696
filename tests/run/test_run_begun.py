"""`moe-dist resume`: the job, its settings and its launcher come from the run's own record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import moe_dist.run.run
from moe_dist.cli import app
from moe_dist.errors import UserError
from moe_dist.files import write_json
from moe_dist.job import dump_job, parse_job
from moe_dist.run.begun import begun_with, recorded_launcher

METHOD = {
    "name": "traditional_moe",
    "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8},
    "gate": {"filters": [4, 8], "hidden": [16]},
    "epochs": 1,
}
DATA = {"dataset": "digits", "image_size": 16, "max_train_images": 200, "max_test_images": 40}
JOB = {"name": "small", "kind": "train", "data": DATA, "method": METHOD, "seed": 7}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run directory as a run leaves it that was killed at once."""
    run = tmp_path / "runs" / "small" / "now"
    run.mkdir(parents=True)
    (run / "job.yaml").write_text(dump_job(parse_job(JOB, "job")))
    return run


def refusal(run: Path) -> str:
    """What `moe-dist resume` of the folder says."""
    with pytest.raises(UserError) as told:
        begun_with(run)
    return str(told.value)


def test_the_job_is_the_one_that_was_begun_with_its_overrides(begun: Path) -> None:
    assert begun_with(begun) == parse_job(JOB, "job")


def test_the_launcher_is_that_of_the_last_start(begun: Path) -> None:
    assert recorded_launcher(begun) == "ray"
    write_json(begun / "run.json", {"starts": [{"launcher": "ray"}, {"launcher": "local"}]})
    assert recorded_launcher(begun) == "local"


def test_a_grids_launcher_is_that_of_its_cells(tmp_path: Path) -> None:
    write_json(tmp_path / "cells" / "one" / "run.json", {"starts": [{"launcher": "local"}]})
    assert recorded_launcher(tmp_path) == "local"


def test_a_folder_without_a_run_is_a_sentence(begun: Path) -> None:
    home = begun.parent
    assert refusal(home) == f"{home}: no run is there; `moe-dist runs list` shows those in runs/"
    (home / "latest").symlink_to("now")
    assert refusal(home) == f"{home}: no run is there; its newest run is {home / 'latest'}"
    assert begun_with(home / "latest").seed == 7


@pytest.mark.parametrize("left", ["", "\0\0\0", "- a list", "{"])
def test_a_job_that_a_power_cut_emptied_is_a_sentence(begun: Path, left: str) -> None:
    (begun / "job.yaml").write_text(left)
    assert str(begun / "job.yaml") in refusal(begun)


def test_resuming_runs_the_job_in_its_folder_by_its_launcher(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def run_job(job: object, run: Path, launcher: str, show: object) -> Path:
        asked.append((job, run, launcher))
        raise UserError("far enough")

    write_json(begun / "run.json", {"starts": [{"launcher": "local"}]})
    monkeypatch.setattr(moe_dist.run.run, "run_job", run_job)
    outcome = CliRunner().invoke(app, ["resume", str(begun)])
    assert str(outcome.exception) == "far enough"
    assert asked == [(parse_job(JOB, "job"), begun, "local")]


@pytest.mark.slow
def test_a_finished_run_is_kept_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(json.dumps(JOB))
    words = ["run", "job.yaml", "--launcher", "local", "--out", "x", "--set", "method.batch_size=40"]
    assert CliRunner().invoke(app, words).exit_code == 0
    again = CliRunner().invoke(app, ["resume", "x"])
    assert again.exit_code == 0 and again.stdout.count("kept from an earlier run") == 2
    assert [start["launcher"] for start in json.loads((tmp_path / "x/run.json").read_text())["starts"]] == ["local"] * 2
