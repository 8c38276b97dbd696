"""A run at a URL leaves what a run in a folder leaves, and is gone on with, read and reported anywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_jobs
from rich.console import Console
from run_folders import checkpoints_of, log_of

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.places import RECORD
from moe_dist.record.run_place import RunPlace, run_place
from moe_dist.run.run import choose_run_place, run_job
from moe_dist.terminal import Show
from moe_dist.train import loop

MODEL = "traditional_moe"


def place_at(url: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> RunPlace:
    """The place of a run at `url`, on a machine that keeps its files in `node`."""
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(node))
    return run_place("--out")(url)


def run(job: Job, place: RunPlace, resume: bool = False, launcher: str = "local") -> str:
    """Run a job as the command does, and return what it prints."""
    console = Console(record=True, width=300, file=None, quiet=False)
    show = Show(console)
    chosen = choose_run_place(job, place, resume)
    with chosen.kept(show) as mirror:
        run_job(job, chosen.folder, launcher, show, mirror=mirror)
    return console.export_text()


def figures(folder: Path) -> dict[str, float]:
    found = json.loads((folder / "metrics.json").read_text())
    return {name: value for name, value in found.items() if "latency" not in name and "seconds" not in name}


def curve(folder: Path) -> list[tuple[Any, ...]]:
    return [(line["kind"], line["step"], line.get("loss"), line.get("val/loss")) for line in log_of(folder / MODEL)]


def steps_kept(folder: Path) -> list[str]:
    """The checkpoints that are kept; behind a file:// URL the folder of a removed one stays, empty."""
    return sorted(path.parent.name for path in checkpoints_of(folder / MODEL).glob("*/state.json"))


@pytest.fixture(scope="module")
def in_a_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_job(small_jobs.traditional(), folder, "local", small_jobs.quiet())
    return folder


@pytest.mark.chaos
def test_a_run_stopped_on_one_machine_ends_on_another(
    in_a_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, store = small_jobs.traditional(), tmp_path / "store/runs/x"
    real_step = loop.train_step
    steps = iter(range(100))

    def step_or_die(*arguments: Any) -> Any:
        if next(steps) == 15:
            raise OSError("the machine is gone")
        return real_step(*arguments)

    one = place_at(f"file://{store}", tmp_path / "one", monkeypatch)
    monkeypatch.setattr(loop, "train_step", step_or_die)
    with pytest.raises(OSError, match="the machine is gone"):
        run(job, one)
    monkeypatch.setattr(loop, "train_step", real_step)
    assert json.loads((store / RECORD).read_text())["status"] == "failed"

    other = place_at(f"file://{store}", tmp_path / "other", monkeypatch)
    with pytest.raises(UserError, match="already holds a run; add --resume"):
        choose_run_place(job, other, resume=False)
    run(job, other, resume=True)
    assert json.loads((store / RECORD).read_text())["status"] == "finished"
    assert figures(store) == figures(in_a_folder)
    assert curve(store) == curve(in_a_folder)
    assert steps_kept(store) == steps_kept(in_a_folder)
    assert (store / "report.html").read_text() == (other.folder / "report.html").read_text()

    again = place_at(f"file://{store}", tmp_path / "third", monkeypatch)
    assert "kept from an earlier run" in run(job, again, resume=True)


@pytest.mark.slow
def test_dfcp_with_its_steps_tasks_and_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, store = small_jobs.dfcp(), tmp_path / "store/x"
    run(job, place_at(f"file://{store}", tmp_path / "one", monkeypatch))
    shutil.rmtree(tmp_path / "one")
    shutil.rmtree(next(store.glob("dfcp/steps/experts/*")))
    said = run(job, place_at(f"file://{store}", tmp_path / "other", monkeypatch), resume=True)
    assert "10 experts, each alone" in said
    assert list(store.glob("dfcp/steps/experts/*/done.json"))


@pytest.mark.parametrize(
    ("resume", "files", "said"),
    [
        (True, [], "no run is there; look at the name"),
        (False, ["notes.txt"], "is not empty and holds no run"),
        (False, ["job.yaml"], "already holds a run; add --resume"),
    ],
)
def test_a_place_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool, files: list[str], said: str
) -> None:
    for name in files:
        (tmp_path / "store").mkdir()
        (tmp_path / "store" / name).touch()
    place = place_at(f"file://{tmp_path}/store", tmp_path / "node", monkeypatch)
    with pytest.raises(UserError, match=said) as told:
        choose_run_place(small_jobs.traditional(), place, resume)
    assert f"--out file://{tmp_path}/store" in str(told.value)
    assert not (tmp_path / "node").exists()
