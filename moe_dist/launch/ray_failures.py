"""Decides when Ray Train restarts a training, and writes down why. Ray's controller imports this file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError, WorkerHealthCheckTimeoutError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2._internal.execution.controller.state import ErroredState, RestartingState
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError

from moe_dist.errors import UserError
from moe_dist.launch.faults import Failure, Fault, Place, fault_of, kind_of_error
from moe_dist.launch.heard import Heard
from moe_dist.launch.ray_metrics import restarts_counter
from moe_dist.record.restarts import note_fault
from moe_dist.train.ends import HungCollective, Left, MoreRoom, NodeTaken

_NODE = re.compile(r"\bnode\b[^.]*\b(died|dead|terminated|unavailable)|raylet (died|crashed)", re.IGNORECASE)
_MEMORY = re.compile(r"low on memory")
"""What Ray's memory monitor says. Of any other death Ray says that the cause may have been memory, among others."""
_SECONDS = re.compile(r"hanging for (\d+)")


class FailurePolicy(DefaultFailurePolicy):
    """Ray Train's policy, except that a worker's UserError ends the training, and that leaving a node is no failure.

    A training that saved a checkpoint because a node goes or comes is started again however often that happens.
    """

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """See DefaultFailurePolicy."""
        if sentence(training_failed_error):
            return FailureDecision.RAISE
        if any(isinstance(failure, Left) for failure in _failures(training_failed_error).values()):
            return FailureDecision.RETRY
        return super().make_decision(training_failed_error)


class FaultNotes(WorkerGroupCallback, ControllerCallback):
    """Notes among a training's attempts what ended an attempt, as the controller sees it.

    training: the training's folder on the driver's node, where the controller is as well. heard: its files. job, model:
    the names under which restarts are counted in Ray's metrics.
    """

    def __init__(self, training: Path, heard: Heard, job: str, model: str) -> None:
        self._training, self._heard, self._names = training, heard, (job, model)
        self._places: dict[int, Place] = {}
        self._counter: Any = None

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Take down where the ranks run."""
        self._places = {
            worker.distributed_context.world_rank: Place(_host(worker.metadata), worker.metadata.pid)
            for worker in worker_group.get_workers()
        }

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        """Note the fault of an attempt that is followed by another one, or by the training's end."""
        if not isinstance(current_state, RestartingState | ErroredState):
            return
        error = current_state.training_failed_error
        fault = fault_in(error, self._places)
        if fault is None or sentence(error):
            return
        step = (self._heard.newest() or {}).get("step", 0)
        final = isinstance(current_state, ErroredState)
        if not final:
            self._counter = self._counter or restarts_counter(*self._names)  # made here, in the controller's process
            self._counter.inc(1, {"kind": fault.kind})
        with suppress(OSError):  # a training goes on, even if nothing can be written for a moment
            note_fault(
                self._training,
                {"kind": fault.kind, "what": fault.what, "ranks": fault.ranks, "step": step, "final": final},
            )


def sentence(error: TrainingFailedError) -> UserError | None:
    """The UserError of a rank, if one raised it, else None; other ranks may have failed as a consequence."""
    return next((failure for failure in _failures(error).values() if isinstance(failure, UserError)), None)


def fault_in(error: TrainingFailedError, places: Mapping[int, Place]) -> Fault | None:
    """The fault behind Ray Train's error; None if it is none of workers."""
    if isinstance(error, PreemptionError):
        ranks = error.preemption_info.preempted_ranks
        return fault_of(dict.fromkeys(ranks, Failure("preempted")), places)
    failures = _failures(error)
    return fault_of({rank: _failure(each) for rank, each in failures.items()}, places) if failures else None


def _failures(error: TrainingFailedError) -> Mapping[int, Exception]:
    return getattr(error, "worker_failures", {})


def _failure(error: Exception) -> Failure:
    """The failure of a rank from the error that Ray Train has of it."""
    if isinstance(error, NodeTaken):
        return Failure("preempted")
    if isinstance(error, MoreRoom):
        return Failure("more room", str(error.workers))
    if isinstance(error, HungCollective):
        return Failure("hung", "too long" if error.seconds is None else f"{error.seconds:.0f} s")
    if isinstance(error, WorkerHealthCheckTimeoutError):
        seconds = _SECONDS.search(str(error))
        return Failure("silent", f"{seconds[1]} s" if seconds else "too long")
    if isinstance(error, WorkerHealthCheckFailedError):
        said = str(error.health_check_failure)
        if _MEMORY.search(said):
            return Failure("out of memory")
        return Failure("node died" if _NODE.search(said) else "worker died")
    return Failure(kind_of_error(error), f"{type(error).__name__}: {error}"[:300])


def _host(metadata: Any) -> str:
    """A machine's name, with its address where several nodes share the machine."""
    local = metadata.node_ip.startswith("127.") and metadata.node_ip != "127.0.0.1"
    return f"{metadata.hostname} ({metadata.node_ip})" if local else metadata.hostname
