"""Where work runs: `local`, in this process (and others like it), or `ray`, on a cluster or an embedded one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from moe_dist.errors import UserError
from moe_dist.launch.progress import ProgressFile
from moe_dist.methods.base import TaskFunction
from moe_dist.train.task import TrainingTask


class Launcher(Protocol):
    """Runs tasks and trainings somewhere."""

    name: str

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """function(common, item, context) of every item, results in the items' order."""

    def train(self, task: TrainingTask) -> Path:
        """Run the training loop on the job's workers until it is done; the folder of its last checkpoint."""


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


def use_threads(cpus: float, sharing: int = 1) -> None:
    """Let torch use the CPUs a worker was given, but no more than its share of this machine's."""
    torch.set_num_threads(max(1, min(int(cpus), (os.cpu_count() or 1) // sharing)))
