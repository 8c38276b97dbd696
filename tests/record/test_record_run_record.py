"""run.json: the starts that made the shown result, and a list of all starts with their ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_folders import checkpoints_of, evaluation_of, training_of
from small_jobs import quiet, traditional

import moe_dist.record.provenance as provenance
import moe_dist.record.run_record as run_record
import moe_dist.run.run as run_module
import moe_dist.train.loop as loop
from moe_dist import __version__
from moe_dist.engine.checkpoint import read_state
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.choose import open_launcher
from moe_dist.places import status_of
from moe_dist.report.run import RunDirectory
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out reports, which take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def run(job: Job, folder: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """run.json after a run that was started by `command`."""
    monkeypatch.setattr(sys, "argv", ["moe-dist", command])
    run_job(job, folder, "local", quiet())
    return record_of(folder)


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def die_at(step: int, error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    real = loop.train_step

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.step == step:
            monkeypatch.setattr(loop, "train_step", real)
            raise error
        return real(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", step_or_die)


def test_a_start_that_does_nothing_leaves_the_top_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    assert first["command"] == "moe-dist first" and first["made_by_starts"] == [0]
    again = run(traditional(epochs=1), tmp_path, "again", monkeypatch)
    assert [start["command"] for start in again["starts"]] == ["moe-dist first", "moe-dist again"]
    assert again | {"starts": []} == first | {"starts": []}


def test_the_top_tells_of_the_starts_that_made_what_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first start trained, the third evaluated again; the second's training is no longer shown."""
    few = traditional().data.model_dump(mode="json") | {"max_test_images": 40}
    run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    second = run(traditional(epochs=2), tmp_path, "second", monkeypatch)
    assert (second["command"], second["made_by_starts"]) == ("moe-dist second", [1])
    third = run(traditional(epochs=1, data=few), tmp_path, "third", monkeypatch)
    assert (third["command"], third["made_by_starts"]) == ("moe-dist third", [0, 2])
    fourth = run(traditional(epochs=2), tmp_path, "fourth", monkeypatch)
    assert (fourth["command"], fourth["made_by_starts"]) == ("moe-dist second", [1])


def test_seconds_are_those_of_the_shown_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    model = tmp_path / "traditional_moe"
    trained = json.loads((training_of(model) / "training.json").read_text())
    evaluated = json.loads((evaluation_of(model) / "evaluation.json").read_text())
    assert record["seconds"] == trained["made"][0]["seconds"] + evaluated["seconds"]
    assert run(traditional(epochs=1), tmp_path, "again", monkeypatch)["seconds"] == record["seconds"]


@pytest.mark.parametrize(
    ("error", "status"), [(RuntimeError("no room left"), "failed"), (KeyboardInterrupt("SIGTERM"), "stopped")]
)
def test_a_run_that_ends_early_says_how(
    error: BaseException, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    die_at(3, error, monkeypatch)
    with pytest.raises(type(error)):
        run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    record = record_of(tmp_path)
    assert (record["status"], record["starts"][0]["status"]) == (status, status)
    assert record["starts"][0]["reason"] == str(error)
    assert RunDirectory(tmp_path).status == status
    assert run(traditional(epochs=1), tmp_path, "again", monkeypatch)["status"] == "finished"
    assert [start["status"] for start in record_of(tmp_path)["starts"]] == [status, "finished"]


def test_a_run_that_fails_before_any_work_is_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_launcher(*given: Any) -> Any:
        raise UserError("no Ray here")

    monkeypatch.setattr(run_module, "open_launcher", no_launcher)
    with pytest.raises(UserError, match="no Ray here"):
        run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    assert record_of(tmp_path)["status"] == "failed"


def test_how_a_run_ended_is_written_before_its_launcher_is_shut_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[str] = []

    @contextmanager
    def slow_to_end(*given: Any) -> Iterator[Any]:
        try:
            with open_launcher("local", *given[1:]) as launcher:
                yield launcher
        finally:
            found.append(record_of(tmp_path)["status"])

    monkeypatch.setattr(run_module, "open_launcher", slow_to_end)
    die_at(3, KeyboardInterrupt("SIGTERM"), monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    assert found == ["stopped"]


def test_a_record_that_a_full_disk_refuses_leaves_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(*given: Any) -> None:
        monkeypatch.setattr(run_record, "write_json", full)
        raise UserError("the disk of the cache is full")

    def full(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_module, "run_model", dies)
    with pytest.raises(UserError, match="the disk of the cache is full"):
        run(traditional(epochs=1), tmp_path, "first", monkeypatch)


def test_a_failure_to_go_on_does_not_take_a_finished_result_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(traditional(epochs=1), tmp_path, "first", monkeypatch)

    def no_launcher(*given: Any) -> Any:
        raise UserError("no Ray here")

    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(run_module, "open_launcher", no_launcher)
        run(traditional(epochs=1), tmp_path, "again", monkeypatch)
    record = record_of(tmp_path)
    assert (record["status"], record["command"]) == ("finished", "moe-dist first")
    assert [start["status"] for start in record["starts"]] == ["finished", "failed"]


@pytest.mark.chaos
def test_a_killed_run_is_called_killed_by_whoever_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After kill -9 the file says `running`: readers check the process, and the next start corrects it."""
    script = "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
    script += (
        "from moe_dist.train import loop; from moe_dist.run import run; from small_jobs import quiet, traditional\n"
    )
    script += "loop.checked = lambda *given: os.kill(os.getpid(), signal.SIGKILL)\n"
    script += "from pathlib import Path; run.run_job(traditional(), Path(sys.argv[2]), 'local', quiet())\n"
    here = str(Path(__file__).parents[1])
    killed = subprocess.run([sys.executable, "-c", script, here, str(tmp_path / "run")])
    assert killed.returncode == -9
    record = record_of(tmp_path / "run")
    assert record["status"] == "running" and status_of(record) == "killed"
    assert RunDirectory(tmp_path / "run").status == "killed"
    after = run(traditional(), tmp_path / "run", "again", monkeypatch)
    assert [start["status"] for start in after["starts"]] == ["killed", "finished"]
    assert after["starts"][0]["seconds"] > 0


def test_a_run_of_this_process_or_another_machine_is_running() -> None:
    here = {"status": "running", "starts": [{"host": socket.gethostname(), "process": os.getpid()}]}
    there = {"status": "running", "starts": [{"host": "another", "process": 2**22 + 1}]}
    assert status_of(here) == status_of(there) == "running"
    assert status_of({"status": "running"}) == "running", "layout 1 kept no starts"


def test_a_checkpoint_and_a_training_carry_what_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two starts by different versions of the code give two stretches, whose steps and seconds add up."""
    die_at(8, RuntimeError("end"), monkeypatch)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(provenance, "code_version", lambda: "0.1.0+first")
        run(traditional(checkpoint={"every_steps": 2}), tmp_path, "first", monkeypatch)
    run(traditional(), tmp_path, "again", monkeypatch)
    model = tmp_path / "traditional_moe"
    trained = json.loads((training_of(model) / "training.json").read_text())
    first, second = trained["made"]
    assert (first["from_step"], first["to_step"], first["code"], first["start"]) == (0, 6, "0.1.0+first", 0)
    assert (second["from_step"], second["to_step"], second["start"]) == (6, 18, 1)
    assert first["hardware"] == [provenance.hardware()] and second["workers"] == 1 and second["precision"] == "fp32"
    assert trained["seconds"] == pytest.approx(first["seconds"] + second["seconds"])
    newest = newest_checkpoint(checkpoints_of(model))
    assert newest is not None and read_state(newest)["made"] == trained["made"]
    evaluated = json.loads((evaluation_of(model) / "evaluation.json").read_text())
    assert evaluated["hardware"] == provenance.hardware() and evaluated["code"] == provenance.code_version()
    assert json.loads((training_of(model) / "settings.json").read_text())["method"]["epochs"] == 3


def test_the_code_version_tells_a_commit_or_a_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    provenance.code_version.cache_clear()
    answers = {"ls-files": "__init__.py", "rev-parse": "c4bf989a12", "status": ""}
    monkeypatch.setattr(provenance, "_git", lambda folder, *command: answers[command[0]])
    assert provenance.code_version() == f"{__version__}+c4bf989a12"
    provenance.code_version.cache_clear()
    answers["status"] = " M loop.py"
    assert provenance.code_version() == f"{__version__}+c4bf989a12.changed"
    provenance.code_version.cache_clear()
    answers["ls-files"] = ""
    version = provenance.code_version()
    provenance.code_version.cache_clear()
    assert version.startswith(f"{__version__}+files.") and len(version) == len(f"{__version__}+files.") + 10


def test_a_clock_that_is_set_back_makes_no_start_shorter_than_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = iter(range(100, 0, -1))
    clock = SimpleNamespace(time=lambda: 3600.0 * next(hours), monotonic=time.monotonic)
    monkeypatch.setattr(run_record, "time", clock)
    die_at(2, ValueError("out of luck"), monkeypatch)
    with pytest.raises(ValueError):
        run(traditional(epochs=1), tmp_path, "first", monkeypatch)
    content = record_of(tmp_path)
    content["starts"][0] |= {"status": "running", "time": time.time() + 1e6}  # as a killed one, by a clock ahead
    (tmp_path / "run.json").write_text(json.dumps(content))
    starts = run(traditional(epochs=1), tmp_path, "second", monkeypatch)["starts"]
    assert [start["status"] for start in starts] == ["killed", "finished"]
    assert starts[0]["seconds"] == 0.0 and 0.0 < starts[1]["seconds"] < 3000.0
