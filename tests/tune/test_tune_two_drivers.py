"""Two drivers on one run: the second is refused while the first lives, and a killed one leaves nothing in the way."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tune_jobs import mixture_search, run

from moe_dist.errors import UserError
from moe_dist.job import Job, dump_job
from moe_dist.record.one_driver import only_driver
from moe_dist.terminal import Show

SPACE = {"gate.dropout": {"low": 0.0, "high": 0.5}}
HOLD = """
import sys, time
from pathlib import Path
from moe_dist.record.one_driver import only_driver
with only_driver(Path(sys.argv[1]), None):
    print("held", flush=True)
    time.sleep(600)
"""


def search(trials: int) -> Job:
    return mixture_search(trials=trials, batch=1, method_space=SPACE)


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_another_process_works_in_is_refused_until_that_is_killed(tmp_path):
    found = run(search(1), tmp_path)
    holder = subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        before = files(tmp_path)
        with pytest.raises(
            UserError, match=rf"another moe-dist \(process {holder.pid} on .*\) is at work in this run; wait"
        ):
            run(search(2), tmp_path)
        assert files(tmp_path) == before
    finally:
        holder.kill()
        holder.wait()
    more = run(search(2), tmp_path)
    assert more["studies"]["method"]["trials"][:1] == found["studies"]["method"]["trials"]


def test_a_file_system_without_locks_is_told_of_and_goes_on(tmp_path, monkeypatch):
    def none(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("moe_dist.record.one_driver.fcntl.lockf", none)
    said = io.StringIO()
    with only_driver(tmp_path / "run", Show(Console(file=said, width=300))):
        assert (tmp_path / "run").is_dir()
    assert "cannot be locked (No locks available); make sure that no other moe-dist works in it" in said.getvalue()


def finished_batches(journal: Path) -> int:
    return journal.read_bytes().count(b'"told"') if journal.exists() else 0


@pytest.mark.slow
def test_the_command_twice_on_one_run_and_the_first_killed(tmp_path):
    """The first has ten thousand trials to go; the second is refused with one sentence, and takes over later."""
    (tmp_path / "job.yaml").write_text(dump_job(search(10_000)))
    folder = tmp_path / "run"
    journal = folder / "traditional_moe" / "search" / "method.jsonl"
    command = [sys.executable, "-m", "moe_dist.cli", "run", "job.yaml", "--launcher", "local", "--out", "run"]
    first = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while finished_batches(journal) < 1:
            assert first.poll() is None
            time.sleep(0.05)
        second = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert second.returncode == 2
        (line,) = second.stderr.splitlines()
        assert f"another moe-dist (process {first.pid} on " in line
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    kept = finished_batches(journal)
    found = run(search(kept + 1), folder)
    assert [trial["number"] for trial in found["studies"]["method"]["trials"]] == list(range(kept + 1))
