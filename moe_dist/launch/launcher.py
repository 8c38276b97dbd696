"""Where work runs: `local`, in this process (and others like it), or `ray`, on a cluster or an embedded one."""

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
from moe_dist.train.loop import train
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import TRAINING_FILES, LocalWorker


class Launcher(Protocol):
    """Runs tasks and trainings somewhere."""

    name: str

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """function(common, item, context) of every item, results in the items' order."""

    def train(self, tasks: Sequence[TrainingTask]) -> list[Path]:
        """Run the training loop of each task until it is done; the folders of their last checkpoints.

        Several are trained at the same time, where that is what they are: small, and one worker's work each.
        """


class Context:
    """A task's context: its device, and a file its progress is written to (any node can, the driver reads)."""

    def __init__(self, device: torch.device, progress: ProgressFile) -> None:
        self.device = device
        self.progress = progress


def device_of(gpus: float) -> torch.device:
    """The device of a worker or task that was given `gpus` (a fraction counts) of this machine."""
    if gpus == 0:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise UserError(
            "the job asks for a GPU (resources.gpus_per_worker or gpus_per_task) and torch sees none here; set both "
            "to 0 to run on the CPU, or run where there is one"
        )
    return torch.device("cuda", 0)


def train_alone(common: None, packed: dict[str, Any], context: TaskContext) -> str:
    """A training of one worker as a task; the folder of its last checkpoint.

    Run again after its process died, it goes on from its last checkpoint.
    """
    task = TrainingTask.unpack(packed)
    with raising_disk_errors(task.folder, TRAINING_FILES), no_torn_checkpoint(task.checkpoints):
        train(TaskWorker(task, context), task)
    last = newest_checkpoint(task.checkpoints)
    assert last is not None, "a finished training leaves a checkpoint"
    return str(last)


class TaskWorker(LocalWorker):
    """The one rank of a training that is a task; it tells how far it is with every checkpoint."""

    def __init__(self, task: TrainingTask, context: TaskContext) -> None:
        super().__init__(task.checkpoints, task.job.checkpoint.keep, 0, 1, context.device)
        self._context = context

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """See LocalWorker."""
        with super().saving(metrics) as folder:
            yield folder
        self._context.progress(metrics["step"], metrics["of_steps"])


def use_threads(cpus: float, sharing: int = 1) -> None:
    """Let torch use the CPUs a worker was given, but no more than its share of this machine's."""
    torch.set_num_threads(max(1, min(int(cpus), (os.cpu_count() or 1) // sharing)))
