"""The local launcher: tasks and trainings in this process; the ranks of a larger training in processes of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch.distributed import TCPStore
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.heard import Heard
from moe_dist.launch.launcher import Context, device_of, last_checkpoint, use_threads
from moe_dist.launch.progress import ProgressFile, watch_tasks, watch_training
from moe_dist.methods.phases import TaskFunction
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import no_torn_checkpoint
from moe_dist.train.ends import HungCollective
from moe_dist.train.store_worker import open_worker
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import TRAINING_FILES

LOOPBACK = "127.0.0.1"
HUNG = "is one stopped, or busy for longer (resources.hung_after_seconds)? Go on from the last checkpoint with --resume"


class LocalLauncher:
    """Runs tasks in turn in this process, and trainings, too; one rank needs neither Ray nor DeepSpeed."""

    name = "local"

    def __init__(self, job: Job, run: Path, show: Show) -> None:
        self._job, self._run, self._show = job, run, show

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """See Launcher. The items run in turn."""
        resources = self._job.resources
        device = device_of(resources.gpus_per_task)
        use_threads(resources.cpus_per_task)
        with watch_tasks(self._show, self._run, len(items)) as folder:
            for number, item in enumerate(items):
                progress = ProgressFile(folder / f"{number}.json")
                yield function(common, item, Context(device, progress))
                progress(1, 1)

    def train(self, tasks: Sequence[TrainingTask]) -> list[Path]:
        """See Launcher. The tasks run in turn, each in this process, or with several workers in a process for each."""
        return [self._train(task) for task in tasks]

    def _train(self, task: TrainingTask) -> Path:
        workers = task.job.workers
        with watch_training(self._show, Heard.of(task)), no_torn_checkpoint(task.checkpoints):
            if workers == 1:
                train_rank(0, 1, task.pack(), 0)
            else:
                _spawn(task, workers)
        return last_checkpoint(task)


def train_rank(rank: int, ranks: int, packed: dict[str, Any], port: int) -> None:
    """Train one rank of a packed task. Several ranks meet in the driver's store at `port` of this machine."""
    from moe_dist.train.loop import train

    task = TrainingTask.unpack(packed)
    resources = task.job.resources
    device = device_of(resources.gpus_per_worker)
    use_threads(resources.cpus_per_worker, sharing=ranks)
    if ranks > 1:
        if device.type == "cuda":
            device = torch.device("cuda", rank % torch.cuda.device_count())
        patience = timedelta(seconds=resources.hung_after_seconds)
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=TCPStore(LOOPBACK, port, timeout=patience, wait_for_workers=False),
            timeout=patience,
            rank=rank,
            world_size=ranks,
        )
    with (
        raising_disk_errors(task.folder, TRAINING_FILES),
        open_worker(task, rank, ranks, device, deepspeed=ranks > 1) as worker,
    ):
        train(worker, task)
    if ranks > 1:
        torch.distributed.destroy_process_group()


def _spawn(task: TrainingTask, workers: int) -> None:
    """Train a task in a process for each rank. If one fails, all are ended, and none outlives this process."""
    sentences, sentence = torch.multiprocessing.Pipe(duplex=False)
    others = torch.multiprocessing.active_children()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each rank that it ends
    meeting = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)  # here, so that its port is nobody else's
    try:
        with _ctrl_c_for_this_process_alone():
            arguments = (workers, task.pack(), meeting.port, os.getpid(), sentence)
            processes = torch.multiprocessing.spawn(_spawned, arguments, nprocs=workers, join=False)
        while not processes.join():
            pass
    except (ProcessRaisedException, ProcessExitedException) as error:
        if sentences.poll():
            raise sentences.recv() from None
        if isinstance(error, ProcessExitedException) and error.signal_name:
            raise UserError(
                f"rank {error.error_index} of the training of {task.model} was ended by {error.signal_name} (SIGKILL: "
                "often memory that ran out); go on from its last checkpoint with --resume"
            ) from None
        raise
    finally:
        for process in set(torch.multiprocessing.active_children()).difference(others):
            process.kill()
            process.join()


@contextlib.contextmanager
def _ctrl_c_for_this_process_alone() -> Iterator[None]:
    """Block SIGINT, which a terminal sends to all processes, for those started in the block. This one gets it after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _spawned(
    rank: int, ranks: int, packed: dict[str, Any], port: int, driver: int, sentence: Connection[UserError, Any]
) -> None:
    """Train one rank in its own process. A UserError is sent through a pipe, because the disk may be full."""
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)  # type: ignore[attr-defined]
    if os.getppid() != driver:  # the driver ended before the line above
        return
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_RANK=str(rank))
    try:
        train_rank(rank, ranks, packed, port)
    except (UserError, HungCollective) as error:
        sentence.send(error if isinstance(error, UserError) else UserError(f"{error}; {HUNG}"))
        sys.exit(1)  # torch would write the exception to a temporary file, and the disk may be full
    sys.stdout.flush()
    sys.stderr.flush()
    # Not a normal exit: on a busy machine, a C++ thread of gloo that has not ended can abort an exiting interpreter.
    os._exit(0)
