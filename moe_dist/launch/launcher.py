"""The interface of launchers, and what both of them (`local` and `ray`) use to run tasks and trainings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.launch.progress import ProgressFile
from moe_dist.methods.phases import TaskContext, TaskFunction
from moe_dist.train.checkpoints import newest_checkpoint, no_torn_checkpoint
from moe_dist.train.ends import Left
from moe_dist.train.log import Log
from moe_dist.train.loop import train
from moe_dist.train.store_worker import open_worker
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import TRAINING_FILES, Worker


class Launcher(Protocol):
    """Runs tasks and trainings, on this machine (`local`) or by Ray (`ray`)."""

    name: str

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """Yield function(common, item, context) for each item, in the order of items."""

    def train(self, tasks: Sequence[TrainingTask]) -> list[Path]:
        """Train each task to its end, and return the folders of their last checkpoints.

        A launcher may train several tasks of one worker each at the same time.
        """


class Context:
    """A task's context: its device, and the file to which it writes its progress."""

    def __init__(self, device: torch.device, progress: ProgressFile) -> None:
        self.device = device
        self.progress = progress


def device_of(gpus: float) -> torch.device:
    """The device of a worker or task with `gpus` GPUs (or a fraction of one). Raises UserError if there is none."""
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "the job asks for a GPU (resources.gpus_per_worker or gpus_per_task) and torch sees none here; set both "
            "to 0 to run on the CPU, or run where there is one"
        )
    return torch.device("cuda", 0)


def train_alone(common: None, packed: dict[str, Any], context: TaskContext) -> None:
    """A task that trains with one worker.

    If its process dies and the task runs again, it continues from its last checkpoint.
    """
    task = TrainingTask.unpack(packed)
    with (
        raising_disk_errors(task.folder, TRAINING_FILES),
        no_torn_checkpoint(task.checkpoints),
        open_worker(task, 0, 1, context.device, deepspeed=False) as worker,
    ):
        train(TaskWorker(worker, context), task)


def last_checkpoint(task: TrainingTask) -> Path:
    """The last checkpoint of a training that has ended, on any nodes."""
    task.fetch_outputs()
    last = newest_checkpoint(task.checkpoints)
    assert last is not None, "a finished training leaves a checkpoint"
    return last


class TaskWorker:
    """The only rank of a training that runs as a task. It reports its progress with each checkpoint."""

    rank, ranks, deepspeed = 0, 1, False

    def __init__(self, worker: Worker, context: TaskContext) -> None:
        self._worker, self._context, self.device = worker, context, worker.device

    def restore(self) -> Path | None:
        """See Worker."""
        return self._worker.restore()

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See Worker."""
        with self._worker.saving(metrics) as folder:
            yield folder
        self._context.progress(metrics["step"], metrics["of_steps"])

    def metered(self, log: Log, job: str, model: str) -> Log:
        """See Worker."""
        return self._worker.metered(log, job, model)

    def leaving(self) -> Left | None:
        """See Worker."""
        return self._worker.leaving()


def use_threads(cpus: float, sharing: int = 1) -> None:
    """Let torch use `cpus` threads, but at most an equal share of this machine's CPUs for `sharing` processes."""
    torch.set_num_threads(max(1, min(int(cpus), (os.cpu_count() or 1) // sharing)))
