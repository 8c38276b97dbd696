"""A rank that is stopped: the other one gives up, says at which step, and the run goes on from its checkpoint."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from small_jobs import quiet, traditional

from moe_dist.errors import UserError
from moe_dist.run.run import run_job
from moe_dist.train.log import last_metrics

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def stop_a_rank(run: Path, at_step: int) -> None:
    """Once a step is done, SIGSTOP one of this process's ranks."""
    while True:
        log = next(run.glob("*/trainings/*/metrics.jsonl"), None)
        if log and (last_metrics(log) or {"step": 0})["step"] >= at_step:
            break
        time.sleep(0.02)
    ranks = [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGSTOP)


def test_a_stopped_rank_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    run = tmp_path / "run"
    job = traditional(workers=2, epochs=60, resources={"hung_after_seconds": 4})
    stopper = threading.Thread(target=stop_a_rank, args=(run, 12), daemon=True)
    stopper.start()
    said = r"^rank \d waited 4 s for other ranks at step \d+; is one stopped, .*hung_after_seconds.* with --resume$"
    with pytest.raises(UserError, match=said):
        run_job(job, run, "local", quiet())
    stopper.join()
    assert not [child for child in psutil.Process().children() if child.status() == psutil.STATUS_STOPPED]
    run_job(traditional(workers=2, epochs=60), run, "local", quiet())
