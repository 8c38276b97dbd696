"""What MLflow is told of a run: by a fake server here, and by MLflow's own client where it is installed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import small_jobs
from rich.console import Console

from moe_dist.files import read_json, write_json
from moe_dist.launch import submit
from moe_dist.places import MLFLOW, ModelFolder
from moe_dist.run import tracking
from moe_dist.run.tracking import Telling, numbers_of, settings_of_model, telling_mlflow
from moe_dist.terminal import Show

MODEL = "traditional_moe"


@dataclass
class Told:
    """A run as the fake server has it."""

    experiment: str
    name: str
    above: str | None
    settings: dict[str, str] = field(default_factory=dict)
    numbers: list[Any] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    status: str = "RUNNING"


class FakeServer:
    """Keeps what it is told; while it is away, every call fails."""

    def __init__(self) -> None:
        self.runs: dict[str, Told] = {}
        self.away = False

    def connect(self) -> FakeServer:
        self._answer()
        return self

    def _answer(self) -> None:
        if self.away:
            raise ConnectionError("cannot reach https://me:hidden@host/mlflow?token=hidden")

    def begin(self, experiment: str, name: str, above: str | None) -> str:
        self._answer()
        self.runs[name] = Told(experiment, name, above)
        return name

    def settings(self, run: str, settings: dict[str, str]) -> None:
        self.runs[run].settings |= settings

    def numbers(self, run: str, numbers: Sequence[Any]) -> None:
        self._answer()
        self.runs[run].numbers += numbers

    def file(self, run: str, path: Path) -> None:
        assert path.is_file()
        self.runs[run].files.append(path.name)

    def status(self, run: str, status: str) -> None:
        self._answer()
        self.runs[run].status = status

    def steps(self, run: str, name: str) -> list[int]:
        """The steps of a number, in the order in which they were told."""
        return [step for told, _, _, step in self.runs[run].numbers if told == name]


class Folder:
    """A run directory with one training, which a test writes."""

    def __init__(self, path: Path) -> None:
        self.path, self.printed = path, io.StringIO()
        self.model = ModelFolder(path / MODEL)
        self.training = self.model.training("a" * 64)
        self.training.mkdir(parents=True)

    def log(self, *steps: int, kind: str = "step") -> None:
        """Add lines to the training's log."""
        with (self.training / "metrics.jsonl").open("a") as file:
            for step in steps:
                line = {"time": 100.0 + step, "kind": kind, "stage": "joint", "epoch": 0, "step": step, "of_steps": 9}
                file.write(json.dumps(line | {"loss": 1 / step, "val/top1": 0.5, "steps_by": "calls"}) + "\n")

    def telling(self, server: FakeServer, place: str = "http://host") -> Telling:
        show = Show(Console(file=self.printed, width=300))
        return Telling(server.connect, place, small_jobs.traditional(), self.path, show)  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "one")


def test_a_run_and_its_training_are_told(folder: Folder) -> None:
    server = FakeServer()
    telling = folder.telling(server)
    folder.log(1, 2)
    telling.look()
    folder.log(3)
    folder.log(3, kind="epoch")
    telling.look()
    telling.look()
    run, training = server.runs["one"], server.runs[f"one {MODEL} joint"]
    assert (run.experiment, run.above, training.experiment, training.above) == ("small", None, "small", "one")
    assert training.settings["method.epochs"] == "3" and training.settings["data.dataset"] == "digits"
    assert server.steps(training.name, "step/loss") == [1, 2, 3]
    assert ("epoch/val/top1", 0.5, 103_000, 3) in training.numbers
    assert {name for name, *_ in training.numbers} == {
        f"{kind}/{name}" for kind in ("step", "epoch") for name in ("loss", "val/top1")
    }

    for name in tracking.FILES:
        (folder.path / name).write_text("{}")
    write_json(folder.path / "metrics.json", {f"{MODEL}/top1": 0.75, "other/top1": 0.1, "bad_samples": 2})
    write_json(folder.path / MODEL / "current.json", {"steps": {}, "training": "a" * 12, "evaluation": None})
    telling.end("FINISHED")
    assert [number[:2] for number in training.numbers if number[0].startswith("result/")] == [("result/top1", 0.75)]
    assert run.files == [*tracking.FILES]
    assert (run.status, training.status) == ("FINISHED", "FINISHED")
    assert "told MLflow at http://host small, one" in folder.printed.getvalue()


def test_a_resumed_run_goes_on_in_the_same_one(folder: Folder) -> None:
    """Steps that are repeated after a kill are told once; another server is told all of it."""
    server = FakeServer()
    folder.log(1, 2, 3)
    folder.telling(server).end("KILLED")
    assert [told.status for told in server.runs.values()] == ["KILLED", "KILLED"]
    (folder.training / "metrics.jsonl").unlink()
    folder.log(1, 2, 3, 4)
    resumed = folder.telling(server)
    resumed.look()
    assert len(server.runs) == 2 and server.runs["one"].status == "RUNNING"
    assert server.steps(f"one {MODEL} joint", "step/loss") == [1, 2, 3, 4]
    other = FakeServer()
    folder.telling(other, "http://other").look()
    assert other.steps(f"one {MODEL} joint", "step/loss") == [1, 2, 3, 4]


def test_a_training_that_had_ended_stays_finished_where_the_run_failed(folder: Folder) -> None:
    server = FakeServer()
    folder.log(1)
    (folder.training / "training.json").write_text("{}")
    folder.telling(server).end("FAILED")
    assert {name: told.status for name, told in server.runs.items()} == {
        "one": "FAILED",
        f"one {MODEL} joint": "FINISHED",
    }


def test_a_server_that_is_away_costs_notices_without_secrets(folder: Folder) -> None:
    server = FakeServer()
    telling = folder.telling(server)
    folder.log(1)
    telling.look()
    server.away = True
    folder.log(2)
    telling.look()
    telling.look()
    telling.end("FAILED")
    said = folder.printed.getvalue().splitlines()
    assert len(said) == 2 and "hidden" not in folder.printed.getvalue()
    assert said[0].strip() == (
        "! MLflow at http://host is not told: cannot reach https://host/mlflow; the work goes on, and it is tried again"
    )
    assert said[1].endswith("--resume sends what is missing there")
    server.away = False
    telling.look()
    assert server.steps(f"one {MODEL} joint", "step/loss") == [1, 2]


def test_a_cell_is_told_in_the_experiment_of_its_grid(folder: Folder) -> None:
    server = FakeServer()
    job = small_jobs.traditional().model_copy(update={"name": "grid.one"})
    Telling(server.connect, "", job, folder.path, small_jobs.quiet()).look()  # type: ignore[arg-type]
    assert server.runs["one"].experiment == "grid"


def test_settings_are_told_without_secrets() -> None:
    job = small_jobs.dfcp()
    data = job.data.model_copy(update={"shards": "https://me:hidden@host/shards?sig=hidden"})
    told = settings_of_model(job.model_copy(update={"data": data}), "dfcp")
    assert told["data.shards"] == "https://host/shards" and told["method.joint.epochs"] == "2"
    assert "name" not in told and "" not in told.values() and "null" not in told.values()


def test_numbers_of_a_line_leave_out_its_words() -> None:
    line = {"time": 1.5, "kind": "step", "stage": "joint", "epoch": 0, "step": 7, "of_steps": 9}
    assert numbers_of(line | {"loss": 2, "how": "graphs"}) == [("step/loss", 2.0, 1500, 7)]


@pytest.mark.parametrize("ended", [KeyboardInterrupt, ValueError])
def test_how_a_block_ended_is_told(folder: Folder, monkeypatch: pytest.MonkeyPatch, ended: type[BaseException]) -> None:
    server = FakeServer()
    monkeypatch.setenv(MLFLOW, "http://host")
    monkeypatch.setattr(tracking, "MlflowServer", lambda uri: server)
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ended), telling_mlflow(small_jobs.traditional(), folder.path, small_jobs.quiet()):
        raise ended
    assert server.runs["one"].status == {KeyboardInterrupt: "KILLED", ValueError: "FAILED"}[ended]


def test_mlflow_that_is_not_installed_is_told_only_where_it_is_asked_for(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    show = Show(Console(file=folder.printed, width=300))
    for uri, said in (("", ""), ("http://host", "pip install 'moe-dist[mlflow]'")):
        monkeypatch.setenv(MLFLOW, uri)
        with telling_mlflow(small_jobs.traditional(), folder.path, show):
            pass
        assert said in folder.printed.getvalue() and bool(said) == bool(folder.printed.getvalue())
    assert not (folder.path / tracking.REMEMBERED).exists()


@pytest.mark.parametrize(
    ("uri", "given", "said"),
    [
        ("", {}, ""),
        ("sqlite:///runs.db", {}, ""),
        ("http://host:5000", {MLFLOW: "http://host:5000"}, ""),
        ("http://me:hidden@host", {}, "set it on the cluster"),
    ],
)
def test_a_cluster_is_given_an_address_without_secrets(
    uri: str, given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(MLFLOW, uri)
    assert submit.mlflow_environment() == given
    printed = capsys.readouterr().out
    assert said in printed and "hidden" not in printed


SMALL_RUN = """
import sys
from pathlib import Path
import small_jobs
from moe_dist.run.run import run_job
from moe_dist.terminal import Show, console
run_job(small_jobs.traditional(), Path(sys.argv[1]), "local", Show(console))
"""


@pytest.mark.slow
def test_mlflow_itself_is_told_of_a_run_and_of_the_same_run_resumed(tmp_path: Path) -> None:
    """By its own client, into a database of this machine, by one process after another."""
    pytest.importorskip("mlflow")
    run, database = tmp_path / "one", f"sqlite:///{tmp_path}/mlflow.db"

    def again(uri: str) -> str:
        command = [sys.executable, "-c", SMALL_RUN, str(run)]
        environment = os.environ | {MLFLOW: uri, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "300"}
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout + done.stderr

    away = again("http://me:hidden@127.0.0.1:9")
    assert "MLflow at http://127.0.0.1:9 is not told" in away and "hidden" not in away
    assert "told MLflow at" in again(database)
    again(database)

    from mlflow.tracking import MlflowClient

    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    found = {each.info.run_name: each for each in client.search_runs([experiment.experiment_id])}
    whole, training = found["one"], found[f"one {MODEL} joint"]
    assert len(found) == 2 and whole.info.status == training.info.status == "FINISHED"
    assert training.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert training.data.params["method.epochs"] == "3"
    assert [each.step for each in client.get_metric_history(training.info.run_id, "epoch/val/top1")] == [6, 12, 18]
    top1 = read_json(run / "metrics.json")[f"{MODEL}/top1"]
    assert training.data.metrics["result/top1"] == top1
    assert {each.path for each in client.list_artifacts(whole.info.run_id)} == {*tracking.FILES}
