"""The local launcher: everything in this process; a training with several ranks in processes of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from moe_dist.config import Job
from moe_dist.errors import UserError
from moe_dist.files import write_text
from moe_dist.methods.base import TaskFunction
from moe_dist.train.launcher import Context, device_of, use_threads
from moe_dist.train.progress import ProgressFile, progress_folder, read_progress
from moe_dist.train.show import Show, watch_training
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import LocalWorker, newest_checkpoint


@contextlib.contextmanager
def local_launcher(job: Job, run: Path, show: Show) -> Iterator[LocalLauncher]:
    """The local launcher; nothing to start or stop."""
    yield LocalLauncher(job, run, show)


class LocalLauncher:
    """Tasks one after another in this process; a one-rank training too, without Ray and without DeepSpeed."""

    name = "local"

    def __init__(self, job: Job, run: Path, show: Show) -> None:
        self._job, self._run, self._show = job, run, show

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """function(common, item, context) of every item, one after another."""
        resources = self._job.resources
        device = device_of(resources.gpus_per_task)
        use_threads(resources.cpus_per_task)
        with progress_folder(self._run) as folder, self._show.watching(lambda: read_progress(folder, len(items))):
            for number, item in enumerate(items):
                progress = ProgressFile(folder / f"{number}.json")
                yield function(common, item, Context(device, progress))
                progress(1, 1)

    def train(self, task: TrainingTask) -> Path:
        """The loop in this process, or `workers` processes of this machine joined by torch.distributed."""
        workers = task.job.workers
        with watch_training(self._show, task.folder):
            if workers == 1:
                train_rank(0, 1, task.pack(), 0)
            else:
                _spawn(task, workers)
        last = newest_checkpoint(task.checkpoints)
        assert last is not None, "a finished training leaves a checkpoint"
        return last


def train_rank(rank: int, world: int, packed: dict[str, Any], port: int) -> None:
    """One rank of a local training; with several, they meet at `port` of this machine."""
    from moe_dist.train.loop import train

    task = TrainingTask.unpack(packed)
    resources = task.job.resources
    device = device_of(resources.gpus_per_worker)
    use_threads(resources.cpus_per_worker, sharing=world)
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", rank % torch.cuda.device_count())
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world
        )
    keep = task.job.checkpoint.keep
    train(LocalWorker(task.checkpoints, keep, rank, world, device), task)
    if world > 1:
        torch.distributed.destroy_process_group()


def _spawn(task: TrainingTask, workers: int) -> None:
    """The ranks as processes; the first that fails ends all."""
    task.error_file.unlink(missing_ok=True)
    try:
        torch.multiprocessing.spawn(_spawned, (workers, task.pack(), _free_port()), nprocs=workers)
    except (torch.multiprocessing.ProcessRaisedException, torch.multiprocessing.ProcessExitedException):
        task.raise_error()
        raise


def _spawned(rank: int, world: int, packed: dict[str, Any], port: int) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    try:
        train_rank(rank, world, packed, port)
    except UserError as error:
        write_text(TrainingTask.unpack(packed).error_file, str(error))
        raise


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
