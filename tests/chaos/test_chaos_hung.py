"""A rank that is stopped: the other one gives up, says at which step, and the run goes on from its checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from run_folders import training_of
from small_jobs import quiet, traditional

from moe_dist.errors import UserError
from moe_dist.launch import local
from moe_dist.run.run import run_job
from moe_dist.train.log import TrainingLog, last_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

STOPPED_AT = 12


def first_rank_stopped(rank: int, *arguments: Any) -> None:
    """Run a rank of the local launcher in its process; the first one stops itself after a step.

    From outside, a busy machine could see the step when the training has ended.
    """
    write = TrainingLog.write

    def write_and_stop(log: TrainingLog, *line: Any, **facts: Any) -> None:
        write(log, *line, **facts)
        _, _, _, step, _ = line
        if rank == 0 and step == STOPPED_AT:
            os.kill(os.getpid(), signal.SIGSTOP)

    TrainingLog.write = write_and_stop  # type: ignore[method-assign]
    local._spawned(rank, *arguments)


def test_a_stopped_rank_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits for minutes: on a busy machine, one rank may come to the first exchange so much later."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    run, job = tmp_path / "run", traditional(workers=2, epochs=4, resources={"hung_after_seconds": 240})
    said = r"^rank 1 waited 240 s for other ranks at step \d+; is one stopped, .*hung_after_seconds.* with --resume$"
    with monkeypatch.context() as patch, pytest.raises(UserError, match=said):
        patch.setattr(local, "_spawned", first_rank_stopped)
        run_job(job, run, "local", quiet())
    assert last_metrics(training_of(run / "traditional_moe") / "metrics.jsonl")["step"] == STOPPED_AT
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_STOPPED]
    run_job(traditional(workers=2, epochs=4), run, "local", quiet())
