"""A whole command in mid-training or mid-search is sent a signal: its exit code, its sentence, and nothing left."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from run_folders import files_below

pytestmark = pytest.mark.chaos

ROOT = Path(__file__).parents[2]
WORDS = {signal.SIGTERM: (143, "SIGTERM"), signal.SIGINT: (130, "Ctrl-C")}
METHOD = {
    "name": "traditional_moe",
    "experts": {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8},
    "gate": {"filters": [4, 8], "hidden": [16]},
    "epochs": 60,
    "batch_size": 32,
}


def write_job(folder: Path, **changes: Any) -> Path:
    """A training of some seconds; the folder's name has a blank, which the command to go on must quote."""
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 200, "max_test_images": 40}
    path = folder / "a job.yaml"
    path.write_text(yaml.safe_dump({"name": "small", "kind": "train", "data": data, "method": METHOD} | changes))
    return path


class Command:
    """`moe-dist` as a process and the leader of its group, with all that it started."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.words = [*words]
        self._out = (folder / "out.txt").open("w+")
        self._err = (folder / "err.txt").open("w+")
        self.process = psutil.Popen(
            [sys.executable, "-m", "moe_dist.cli", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=self._out,
            stderr=self._err,
            start_new_session=True,
        )
        self.started: list[psutil.Process] = []

    def wait_for(self, folder: Path, pattern: str, text: str, count: int) -> None:
        """Return when one of the files `pattern` below `folder` holds `text` so many times; the command still runs."""
        while not any(path.read_text().count(text) >= count for path in files_below(folder, pattern)):
            assert self.process.poll() is None, self.said()
            time.sleep(0.05)
        self.started = self.process.children(recursive=True)

    def send(self, which: signal.Signals, to_all: bool) -> None:
        """To the process, or to its whole group, as a terminal, `timeout` and Slurm do."""
        (os.killpg if to_all else os.kill)(self.process.pid, which)

    def said(self) -> str:
        """What it wrote on stderr."""
        self._err.seek(0)
        return self._err.read()

    def end(self) -> list[psutil.Process]:
        """Kill what is left, which is returned."""
        left = psutil.wait_procs([self.process, *self.started], timeout=240)[1]
        for process in left:
            process.kill()
        self._out.close()
        self._err.close()
        return left


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        command.end()


def stopped(command: Command, which: signal.Signals, to_all: bool) -> list[str]:
    """Send the signal, see the command end as it should, and return the words of the command that goes on."""
    code, name = WORDS[which]
    command.send(which, to_all)
    assert command.process.wait() == code, command.said()
    lines = command.said().splitlines()
    assert len(lines) == 1 and lines[0].startswith(f"stopped by {name}; go on with: moe-dist run "), command.said()
    assert command.end() == [], "nothing it started outlives it"
    return shlex.split(lines[0].partition("go on with: moe-dist ")[2])


def finish(folder: Path, words: list[str]) -> None:
    """Go on with the words that were printed, but without Ray, which is the quicker one."""
    words = ["local" if word == "ray" else word for word in words]
    command = [sys.executable, "-m", "moe_dist.cli", *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("launcher", "workers", "which", "to_all", "gone_on_with"),
    [
        ("local", 1, signal.SIGTERM, False, True),
        ("local", 1, signal.SIGINT, True, False),
        ("local", 2, signal.SIGTERM, False, False),
        ("local", 2, signal.SIGINT, True, False),
        ("ray", 1, signal.SIGTERM, False, True),
        ("ray", 2, signal.SIGINT, True, False),
        pytest.param("local", 2, signal.SIGTERM, True, True, marks=pytest.mark.slow),
        pytest.param("ray", 2, signal.SIGTERM, True, True, marks=pytest.mark.slow),
    ],
)
def test_a_training_unwinds_and_can_be_gone_on_with(
    launcher: str,
    workers: int,
    which: signal.Signals,
    to_all: bool,
    gone_on_with: bool,
    tmp_path: Path,
    commands: list[Command],
) -> None:
    words = ["run", str(write_job(tmp_path)), "--launcher", launcher, "--set", f"workers={workers}", "--out", "a run"]
    command = Command(tmp_path, *words)
    commands.append(command)
    command.wait_for(tmp_path, "metrics.jsonl", "\n", 10)
    go_on = stopped(command, which, to_all)
    assert go_on == [*words, "--resume"]
    if gone_on_with:
        finish(tmp_path, go_on)


def test_a_run_without_out_is_told_its_folder(tmp_path: Path, commands: list[Command]) -> None:
    words = ["run", str(write_job(tmp_path)), "--launcher", "local"]
    command = Command(tmp_path, *words)
    commands.append(command)
    command.wait_for(tmp_path, "metrics.jsonl", "\n", 10)
    (run,) = (tmp_path / "runs" / "small").glob("2*")
    assert stopped(command, signal.SIGTERM, False) == [*words, "--out", f"runs/small/{run.name}", "--resume"]


@pytest.mark.parametrize(("which", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_signal_while_ray_starts_ends_as_any_other(
    which: signal.Signals, to_all: bool, tmp_path: Path, commands: list[Command]
) -> None:
    """Ray that is left half started ends the process by an abort."""
    words = ["run", str(write_job(tmp_path)), "--launcher", "ray", "--out", "a run"]
    command = Command(tmp_path, *words)
    commands.append(command)
    while not any("raylet" in program for program in children_of(command.process).values()):
        assert command.process.poll() is None, command.said()
        time.sleep(0.01)
    command.started = [*children_of(command.process)]
    assert stopped(command, which, to_all) == [*words, "--resume"]


def children_of(process: psutil.Process) -> dict[psutil.Process, str]:
    """Those that are there and can be asked, and the programs that they run."""
    found = {}
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[child] = " ".join(child.cmdline()[:1])
    return found


TUNE = {"of": ["method"], "trials": 200, "batch": 1, "method_space": {"gate.dropout": {"low": 0.0, "high": 0.5}}}


@pytest.mark.parametrize(("launcher", "which"), [("local", signal.SIGTERM), ("ray", signal.SIGINT)])
def test_a_search_unwinds_and_goes_on_after_the_trials_it_was_told(
    launcher: str, which: signal.Signals, tmp_path: Path, commands: list[Command]
) -> None:
    """Ray Tune takes Ctrl-C as the search's end, and would go on to its results."""
    job = write_job(tmp_path, kind="tune", tune=TUNE, method=METHOD | {"epochs": 1})
    command = Command(tmp_path, "run", str(job), "--launcher", launcher, "--out", "run")
    commands.append(command)
    command.wait_for(tmp_path, "*.jsonl", '"told"', 2)
    go_on = stopped(command, which, to_all=False)
    (journal,) = (path for path in tmp_path.rglob("*.jsonl") if '"told"' in path.read_text())
    told = journal.read_text().count('"told"')
    assert told < 200
    again = Command(tmp_path, *("local" if word == "ray" else word for word in go_on))
    commands.append(again)
    again.wait_for(tmp_path, journal.name, '"told"', told + 2)
    stopped(again, signal.SIGTERM, to_all=False)
