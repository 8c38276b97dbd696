"""Trainings that end before their last step: exchanges that hang, memory that runs out, nodes that are taken away."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from built_data import built_data
from small_jobs import quiet, traditional

from moe_dist.errors import UserError
from moe_dist.places import cache_folder
from moe_dist.run.run import run_job
from moe_dist.train import loop
from moe_dist.train.checkpoints import checkpoints
from moe_dist.train.ends import HungCollective, NodeTaken, naming_failures
from moe_dist.train.worker import LocalWorker

GLOO = "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:119] Timed out waiting 2000ms for recv operation"
NCCL = "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE, Timeout(ms)=300000) ran for"


@pytest.mark.parametrize(("said", "seconds"), [(GLOO, 2), (NCCL, 300), ("Operation timed out!", None)])
def test_a_hung_exchange_is_named_with_rank_and_step(said: str, seconds: float | None) -> None:
    with pytest.raises(HungCollective) as ended, naming_failures(1, 3, lambda: 41):
        raise RuntimeError(said)
    found = pickle.loads(pickle.dumps(ended.value))  # it goes to another process
    assert (found.rank, found.step, found.seconds) == (1, 42, seconds)


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="closed by peer"), naming_failures(1, 3, lambda: 41):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(RuntimeError, match="Timed out"), naming_failures(0, 1, lambda: 41):
        raise RuntimeError("Timed out waiting 5ms")  # a single rank waits for nobody


@pytest.mark.parametrize(
    ("error", "what"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "GPU memory after step 41"),
        (MemoryError("Unable to allocate 8 GiB"), "memory after step 41"),
    ],
)
def test_memory_that_ran_out_is_a_sentence_that_says_what_to_set(error: Exception, what: str) -> None:
    said = rf"^rank 1 \(on .*\) ran out of {what}; raise parallel.micro_batches, lower batch_size, .* --resume"
    with pytest.raises(UserError, match=said), naming_failures(1, 3, lambda: 41):
        raise error


def test_all_ranks_save_and_end_where_a_node_is_taken_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In mid epoch, where no checkpoint was due; what follows is the curve of an unbroken run."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)  # which takes longer than the runs
    job = traditional()
    built_data(job.data, job.seed, cache_folder())
    steps: list[int] = []
    train_step = loop.train_step

    def count(method, session, batch, progress):  # type: ignore[no-untyped-def]
        steps.append(progress.step)
        return train_step(method, session, batch, progress)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_step", count)
        patched.setattr(LocalWorker, "leaving", lambda self: NodeTaken() if len(steps) >= 8 else None)
        with pytest.raises(NodeTaken):
            run_job(job, tmp_path / "run", "local", quiet())
    assert steps[-1] == 8, "with the step that was under way"
    (folder,) = (tmp_path / "run").glob("*/trainings/*/checkpoints")
    assert [path.name for path in checkpoints(folder)] == ["checkpoint_00000006", "checkpoint_00000008"]
    run_job(job, tmp_path / "run", "local", quiet())
    run_job(job, tmp_path / "whole", "local", quiet())
    logs = [
        [line for line in path.read_text().splitlines() if '"step"' in line]
        for path in sorted(tmp_path.glob("*/traditional_moe/trainings/*/metrics.jsonl"))
    ]
    assert len(logs) == 2 and losses(logs[0]) == losses(logs[1])


def losses(lines: list[str]) -> list[str]:
    return [line.partition('"loss": ')[2].partition(",")[0] for line in lines]
