"""Failures that end a training by Ray Train at once, and failures that it retries. Ray is not started."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.controller.state import ErroredState, RestartingState, RunningState
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2.api.config import FailureConfig
from ray.train.v2.api.exceptions import ControllerError, PreemptionError, TrainingFailedError, WorkerGroupError
from ray.train.v2.api.preemption import PreemptionInfo
from small_jobs import traditional

from moe_dist.errors import DiskError, UserError
from moe_dist.launch import ray_failures, ray_trainer
from moe_dist.launch.faults import Place
from moe_dist.launch.heard import Heard
from moe_dist.launch.ray_failures import FailurePolicy, FaultNotes, fault_in
from moe_dist.train.ends import HungCollective, MoreRoom, NodeTaken

DIVERGED = UserError("the loss diverged")
LOST = RuntimeError("connection closed by peer")


def group(**failures: Exception) -> WorkerGroupError:
    """The failure that the controller gets from ranks, by the last letter of their names."""
    return WorkerGroupError("as Ray says it", {int(name[-1]): error for name, error in failures.items()})


@pytest.mark.parametrize(
    ("error", "decisions"),
    [
        (group(rank_1=DIVERGED), [FailureDecision.RAISE]),
        (group(rank_0=LOST, rank_1=DIVERGED), [FailureDecision.RAISE]),
        (group(rank_0=LOST, rank_1=DiskError("the disk is full")), [FailureDecision.RAISE]),
        (group(rank_0=LOST), [FailureDecision.RETRY, FailureDecision.RETRY, FailureDecision.RAISE]),
        (ControllerError(LOST), [FailureDecision.RAISE]),
        (group(rank_0=NodeTaken(), rank_1=NodeTaken()), [FailureDecision.RETRY] * 5),
        (group(rank_0=MoreRoom(2)), [FailureDecision.RETRY] * 5),
    ],
    ids=["sentence", "its consequence", "disk", "lost worker", "controller", "node that goes", "node that comes"],
)
def test_a_sentence_is_not_tried_again(error: TrainingFailedError, decisions: list[FailureDecision]) -> None:
    policy = pickle.loads(pickle.dumps(FailurePolicy(FailureConfig(max_failures=2))))  # it goes to the controller
    assert [policy.make_decision(error) for _ in decisions] == decisions


@pytest.mark.parametrize(
    ("raised", "expected", "said"),
    [
        (group(rank_0=LOST, rank_1=DIVERGED), UserError, "^the loss diverged$"),
        (
            ControllerError(OSError(errno.ENOSPC, "No space left on device")),
            DiskError,
            "^{folder}: the disk is full, so",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), DiskError, "^{folder}: the disk is full, so a checkpoint"),
        (group(rank_0=LOST), WorkerGroupError, "as Ray says it"),
        (ControllerError(LOST), ControllerError, "connection closed"),
    ],
    ids=["rank", "controller's disk", "driver's disk", "other rank's", "other controller's"],
)
def test_fit_raises_what_the_user_can_mend_as_that(
    raised: Exception, expected: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Any) -> None:
        raise pickle.loads(pickle.dumps(raised))  # as from another process

    monkeypatch.setattr(ray_trainer.Trainer, "fit", fail)
    task = SimpleNamespace(
        url=None,
        job=traditional(),
        folder=tmp_path,
        checkpoints=tmp_path / "checkpoints",
        pack=dict,
        model="m",
        worker_counts=(),
    )
    with pytest.raises(expected, match=said.format(folder=tmp_path)) as ended:
        ray_trainer.fit(task, lambda packed: None)  # type: ignore[arg-type]
    assert type(ended.value) is expected


PLACES = {0: Place("a", 11), 1: Place("b", 12), 2: Place("b", 13)}


def died(said: str) -> WorkerHealthCheckFailedError:
    """What Ray Train has of a rank whose actor is gone."""
    gone = ActorDiedError()
    gone.error_msg = said
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=gone)


KILLED = died(
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR. There are some potential "
    "root causes. (1) The process is killed by SIGKILL by OOM killer due to high memory usage. (2) ray stop --force is "
    "called."
)
NO_NODE = died("The actor died because its node has died. Node Id: 4711")
NO_MEMORY = died("1 worker(s) were killed due to the node running low on memory.")
SILENT = WorkerHealthCheckTimeoutError("A worker health check has been hanging for 60.21 seconds.")
CLOSED = RuntimeError("[pair.cc:553] Connection closed by peer [127.0.0.3]:4711")
TAKEN = PreemptionError(PreemptionInfo(None, {"node": [1, 2]}), drain_timed_out=True)


@pytest.mark.parametrize(
    ("error", "kind", "ranks", "what"),
    [
        (group(rank_0=CLOSED, rank_1=KILLED), "worker died", (1,), "the worker of rank 1 (process 12 on b) died"),
        (
            group(rank_0=CLOSED, rank_1=NO_NODE, rank_2=NO_NODE),
            "node died",
            (1, 2),
            "the nodes of ranks 1 and 2 (process 12 on b; process 13 on b) died",
        ),
        (
            group(rank_0=NO_MEMORY, rank_1=KILLED),
            "out of memory",
            (0,),
            "the worker of rank 0 (process 11 on a) ended because memory ran out; give workers more memory, or lower "
            "batch_size or the number of workers on a node (resources.cpus_per_worker)",
        ),
        (group(rank_2=SILENT), "silent", (2,), "the worker of rank 2 (process 13 on b) did not answer for 60 s"),
        (
            group(rank_0=HungCollective(0, 42, 300.0), rank_2=HungCollective(2, 42, 300.0)),
            "hung",
            (1,),
            "ranks 0 and 2 waited 300 s for rank 1",
        ),
        (
            group(rank_0=NodeTaken(), rank_1=NodeTaken(), rank_2=NodeTaken()),
            "preempted",
            (),
            "a node of the training will be taken away",
        ),
        (
            TAKEN,
            "preempted",
            (1, 2),
            "the nodes of ranks 1 and 2 (process 12 on b; process 13 on b) will be taken away",
        ),
        (
            group(rank_0=MoreRoom(4), rank_1=MoreRoom(4), rank_2=CLOSED),
            "more room",
            (),
            "the cluster has room for 4 workers instead of 3",
        ),
        (
            group(rank_0=MoreRoom(4), rank_1=KILLED),
            "worker died",
            (1,),
            "the worker of rank 1 (process 12 on b) died",
        ),
        (
            group(rank_0=CLOSED, rank_1=ValueError("no\nsuch thing")),
            "error",
            (1,),
            "the worker of rank 1 (process 12 on b) failed: ValueError: no such thing",
        ),
        (
            group(rank_0=CLOSED),
            "connection lost",
            (0,),
            "rank 0 (process 11 on a) lost the connection to another rank",
        ),
        (
            group(rank_0=CLOSED, rank_2=CLOSED),
            "connection lost",
            (1,),
            "ranks 0 and 2 lost the connection to rank 1 (process 12 on b)",
        ),
    ],
    ids=[
        *("died", "node", "memory", "silent", "hung", "taken", "taken, late", "more room", "died meanwhile"),
        *("error", "consequence", "unknown death"),
    ],
)
def test_the_rank_that_explains_the_others_is_named(
    error: TrainingFailedError, kind: str, ranks: tuple[int, ...], what: str
) -> None:
    fault = fault_in(pickle.loads(pickle.dumps(error)), PLACES)
    assert fault is not None and (fault.kind, fault.ranks, fault.what) == (kind, ranks, what)


def test_faults_of_attempts_are_noted_with_the_step_and_sentences_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[Any] = []
    counter = SimpleNamespace(inc=lambda *what: counted.append(what))
    monkeypatch.setattr(ray_failures, "restarts_counter", lambda *names: counter)
    heard = Heard(tmp_path)
    notes = FaultNotes(tmp_path, heard, "demo", "dfcp")
    metadata = SimpleNamespace(hostname="b", node_ip="127.0.0.3", pid=12)
    worker = SimpleNamespace(distributed_context=SimpleNamespace(world_rank=1), metadata=metadata)
    notes.after_worker_group_start(SimpleNamespace(get_workers=lambda: [worker]))
    notes.after_controller_state_update(None, RunningState())
    notes.after_controller_state_update(None, ErroredState(group(rank_0=LOST, rank_1=DIVERGED)))
    notes.after_controller_state_update(None, ErroredState(ControllerError(LOST)))
    assert heard.faults() == []
    (tmp_path / "metrics.jsonl").write_text('{"step": 42}\n')
    for state in (RestartingState, ErroredState):
        notes.after_controller_state_update(None, state(group(rank_0=CLOSED, rank_1=KILLED)))
    first, last = ({name: line for name, line in each.items() if name != "time"} for each in heard.faults())
    what = "the worker of rank 1 (process 12 on b (127.0.0.3)) died"
    assert first == {"kind": "worker died", "what": what, "ranks": [1], "step": 42, "final": False}
    assert last == first | {"final": True}
    assert counted == [(1, {"kind": "worker died"})]
