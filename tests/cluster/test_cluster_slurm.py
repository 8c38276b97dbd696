"""cluster/slurm.sbatch passes shellcheck; with stand-ins for Slurm and Ray it starts a head, workers and the run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from running_cluster import tool

STAND_INS = {
    "scontrol": "printf 'node1\\nnode2\\nnode3\\n'",
    "getent": "echo '10.0.0.1  STREAM node1'",
    "srun": 'echo "srun $*" >>"$CALLS"; stat -c %a "$RAY_AUTH_TOKEN_PATH" >>"$CALLS.mode"; exec sleep 0.2',
    "ray": 'echo "ray $*" >>"$CALLS"',
    "python": 'echo "python $* at $RAY_ADDRESS" >>"$CALLS"; echo "$MOE_DIST_GO_ON" >>"$CALLS.go_on"\n'
    'for ((i = 0; i < 600 && $(cat "$CALLS.mode" 2>/dev/null | wc -l) < 2; i++)); do sleep 0.05; done; eval "$RUN"',
}
"""Bodies of the commands that the script calls. RUN is what `moe-dist run` does, once both `srun`, which the script
starts beside it, have noted their call."""

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def script(repository: Path) -> Path:
    return repository / "cluster/slurm.sbatch"


@pytest.fixture
def start(script: Path, tmp_path: Path) -> Start:
    """Starts the script in an allocation of three nodes; what it calls is noted in the file `calls`."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, body in STAND_INS.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)

    def begin(*words: str, run: str = "exit 0", of: Path = script, **variables: str) -> subprocess.Popen[str]:
        environment = {"PATH": f"{commands}:{os.environ['PATH']}", "HOME": str(tmp_path), "RUN": run}
        environment |= {"CALLS": str(tmp_path / "calls"), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-3]"}
        environment |= {"SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2"} | variables
        pipe = subprocess.PIPE
        return subprocess.Popen(["bash", str(of), *words], env=environment, text=True, stdout=pipe, stderr=pipe)

    return begin


def called(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def test_bash_and_shellcheck_find_nothing(script: Path) -> None:
    for command in (["bash", "-n"], [tool("shellcheck")]):
        outcome = subprocess.run([*command, str(script)], capture_output=True, text=True)
        assert (outcome.returncode, outcome.stdout + outcome.stderr) == (0, "")


def test_its_settings_are_ones_that_slurm_has(script: Path) -> None:
    settings = [line.removeprefix("#SBATCH ") for line in script.read_text().splitlines() if line.startswith("#SBATCH")]
    names = {setting.partition("=")[0] for setting in settings}
    assert names == {
        "--job-name",
        "--output",
        "--open-mode",
        "--exclusive",
        "--ntasks-per-node",
        "--nodes",
        "--cpus-per-task",
        "--gpus-per-node",
        "--time",
        "--signal",
        "--requeue",
    }


def test_head_workers_and_run(start: Start, tmp_path: Path) -> None:
    job = start("x.yaml", "--out", "/shared/x", "--set", "name=a b")
    _, said = job.communicate()
    assert job.returncode == 0, said
    heads = [line for line in called(tmp_path) if "ray start --head" in line]
    workers = [line for line in called(tmp_path) if "ray start --address=10.0.0.1:6379" in line]
    assert len(heads) == len(workers) == 1
    assert "--nodelist=node1 " in heads[0] and "--dashboard-host=127.0.0.1" in heads[0]
    assert "--nodes=2 --ntasks=2 --exclude=node1" in workers[0]
    assert all("--num-cpus=8 --num-gpus=2" in line for line in (*heads, *workers))
    run = "python -m moe_dist.cli run x.yaml --out /shared/x --set name=a b at 10.0.0.1:6379"
    assert [line for line in called(tmp_path) if line.startswith("python")] == [run]
    go_on = "sbatch cluster/slurm.sbatch 'x.yaml' '--out' '/shared/x' '--set' 'name=a b' --resume"
    assert (tmp_path / "calls.go_on").read_text().strip() == go_on


def test_the_token_is_private_and_ends_with_the_job(start: Start, tmp_path: Path) -> None:
    assert start("x.yaml", "--out", "/shared/x").wait() == 0
    assert set((tmp_path / "calls.mode").read_text().split()) == {"600"}
    assert list((tmp_path / ".moe_dist").iterdir()) == []
    assert not any("--token" in line for line in called(tmp_path))


def test_its_exit_code_is_the_runs(start: Start) -> None:
    assert start("x.yaml", "--out", "/shared/x", run="exit 2").wait() == 2


@pytest.mark.parametrize("at", ["the run's end is waited for", "the run's number is not known"])
def test_sigterm_stops_the_run_and_waits_for_it(start: Start, script: Path, tmp_path: Path, at: str) -> None:
    """Also where it comes between the start of the run and the next line, at which the script is held up for that."""
    held_up = f"\nuntil [[ -e {tmp_path}/sent ]]; do sleep 0.05; done\nrun=$!\n"
    text = script.read_text().replace("\nrun=$!\n", held_up if "number" in at else "\nrun=$!\n")
    assert (held_up in text) == ("number" in at)
    (tmp_path / "copy.sbatch").write_text(text)
    stopping = f"trap 'touch {tmp_path}/unwound; exit 143' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done"
    job = start("x.yaml", "--out", "/shared/x", run=stopping, of=tmp_path / "copy.sbatch")
    while not (tmp_path / "up").exists():
        assert job.poll() is None
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    (tmp_path / "sent").touch()
    assert job.wait() == 143
    assert (tmp_path / "unwound").exists()
    assert list((tmp_path / ".moe_dist").iterdir()) == []


@pytest.mark.parametrize(("begun", "resumes"), [(True, True), (False, False)])
def test_a_job_that_slurm_starts_again_goes_on(start: Start, tmp_path: Path, begun: bool, resumes: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    if begun:
        (out / "job.yaml").touch()
    assert start("x.yaml", "--out", str(out), SLURM_RESTART_COUNT="1").wait() == 0
    (run,) = [line for line in called(tmp_path) if line.startswith("python")]
    assert ("--resume" in run) is resumes


def test_without_a_place_it_says_how_it_is_used(start: Start, tmp_path: Path) -> None:
    job = start("x.yaml")
    _, said = job.communicate()
    assert job.returncode == 2
    assert said.startswith("usage: sbatch cluster/slurm.sbatch JOB --out PLACE")
    assert not (tmp_path / "calls").exists()
