"""The Ray launcher: tasks run as Ray tasks, trainings by Ray Train, on a cluster or an embedded Ray."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.heard import Heard
from moe_dist.launch.launcher import Context, device_of, last_checkpoint, train_alone, use_threads
from moe_dist.launch.progress import ProgressFile, begin_task, watch_tasks, watch_training
from moe_dist.launch.ray_environment import PROMPT, QUIET
from moe_dist.launch.ray_room import telling_of_waits
from moe_dist.launch.restart_watch import RestartWatch
from moe_dist.methods.phases import TaskFunction
from moe_dist.private_ray import private_ray
from moe_dist.ray_address import cluster_address
from moe_dist.record.restarts import Survived, forget
from moe_dist.settings.resources import ResourceConfig
from moe_dist.signals import deferring_signals
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import no_torn_checkpoint, superseded
from moe_dist.train.task import TrainingTask

TOLD_BY_RAY = ("A worker died or was killed", "Task _run_task failed", "The node with node id", "Raylet is terminated")
"""How Ray's messages begin that the launcher puts into words of its own."""
TASK_RETRIES = 2
"""How often a task is begun again after its worker died."""
OBJECT_STORE_BYTES = 512 * 2**20
"""The object store of an embedded Ray, instead of 30 % of memory: images are read from files, not from the store."""


@contextlib.contextmanager
def ray_launcher(job: Job, run: Path, show: Show, survived: Survived = forget) -> Iterator[RayLauncher]:
    """Connect to the cluster of RAY_ADDRESS, which is set for a submitted job, or start an embedded Ray."""
    gpus = max(job.resources.gpus_per_worker, job.resources.gpus_per_task)
    with started_ray(embedded_cpus(job), show, gpus) as is_shared:
        import ray

        require_resources(job, ray.cluster_resources(), show)
        with telling_of_waits(show) if is_shared else contextlib.nullcontext():
            yield RayLauncher(job, run, show, survived)


@contextlib.contextmanager
def started_ray(cpus: int, show: Show, gpus: float = 0) -> Iterator[bool]:
    """Connect to the cluster of RAY_ADDRESS, or start an embedded Ray that counts with `cpus`, while the block runs.

    The block is told whether it is a cluster, which others may use at the same time.

    gpus: what a worker asks for, which an embedded Ray must find on this machine. Raises UserError where Ray is not
    installed, or the cluster cannot be used from here.
    """
    for name, value in (QUIET | PROMPT).items():
        os.environ.setdefault(name, value)
    address = cluster_address()
    try:
        import ray
    except ImportError:
        raise UserError(
            "--launcher ray needs Ray, which is not installed: pip install 'ray[default,train,tune]', "
            "or use --launcher local"
        ) from None

    device_of(0 if address else gpus)
    try:
        with show.working("start Ray"), deferring_signals():
            _start_ray(cpus, address)
        with _deaths_held_back():
            yield address is not None
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _deaths_held_back() -> Iterator[None]:
    """Keep Ray from printing that a worker or a node died while the block runs: the launcher says so in a sentence.

    Ray prints what a raylet tells the driver by this function, and has no setting for it.
    """
    from ray._private import worker

    printing = worker.print_to_stdstream

    def print_others(data: dict[str, Any], ignore_prefix: bool) -> None:
        lines = [line for line in data["lines"] if not line.lstrip().startswith(TOLD_BY_RAY)]
        if lines:
            printing(data | {"lines": lines}, ignore_prefix)

    worker.print_to_stdstream = print_others
    try:
        yield
    finally:
        worker.print_to_stdstream = printing


def _start_ray(cpus: int, address: str | None) -> None:
    """Connect to the cluster at `address`, or start a Ray.

    Raises UserError if the cluster cannot be used from here, and if this machine is too busy for a Ray to start.
    """
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if address is None:
            _start_own_ray(cpus)  # not one that `ray start` left on this machine
            return
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (OSError, ValueError, RuntimeError) as error:  # another version of Ray, no node on this machine
            reason = " ".join(str(error).split())
            raise UserError(
                f"RAY_ADDRESS {address}: this machine cannot run on that cluster ({reason}); mend that, "
                "or unset RAY_ADDRESS to use this machine alone"
            ) from error


def _start_own_ray(cpus: int) -> None:
    import ray

    try:
        with private_ray():
            ray.init(
                address="local",
                num_cpus=cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except Exception as error:  # Ray raises nothing narrower
        if "timed out during startup" not in str(error):
            raise
        raise UserError(
            "Ray did not start within the minute that it gives itself: other programs take this machine's processors "
            "or memory; run again when they are done, or with --launcher local"
        ) from error


def embedded_cpus(job: Job) -> int:
    """The number of CPUs that an embedded Ray counts with: this machine's, or more if the job's workers need more.

    Workers then share the cores, so that `--set workers=2` runs on any laptop.
    """
    asked = math.ceil(job.workers * job.resources.cpus_per_worker)
    return max(os.cpu_count() or 1, asked, math.ceil(job.resources.cpus_per_task))


def require_resources(job: Job, have: dict[str, float], show: Show) -> None:
    """Tell the user if the cluster is too small for the job; Ray would wait without a message."""
    need = {
        "CPU": job.fewest_workers * job.resources.cpus_per_worker,
        "GPU": max(job.fewest_workers * job.resources.gpus_per_worker, job.resources.gpus_per_task),
    }
    for kind, amount in need.items():
        if amount > have.get(kind, 0):
            show.notice(
                f"the cluster has {have.get(kind, 0):g} {kind}s and the job's {job.fewest_workers} workers ask for "
                f"{amount:g}: waiting for the cluster to grow; if it cannot, lower `workers` or `resources`"
            )


class RayLauncher:
    """Runs tasks and trainings on the Ray to which this process is connected."""

    name = "ray"

    def __init__(self, job: Job, run: Path, show: Show, survived: Survived = forget) -> None:
        self._job, self._run, self._show, self._survived = job, run, show, survived

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """See Launcher. Each item is a Ray task, with the CPUs and the share of a GPU that the job gives to tasks."""
        import ray

        resources = self._job.resources
        remote = ray.remote(_run_task).options(
            num_cpus=resources.cpus_per_task, num_gpus=resources.gpus_per_task, max_retries=TASK_RETRIES
        )
        shared = ray.put(common)
        with watch_tasks(self._show, self._run, len(items), self._survived) as folder:
            pending = [
                remote.remote(function, shared, item, resources.model_dump(), str(folder / f"{number}.json"))
                for number, item in enumerate(items)
            ]
            try:
                while pending:
                    yield _result(pending.pop(0))
            finally:  # a task failed, or the rest is not needed; Ray can crash if a finished task is cancelled
                for reference in ray.wait(pending, num_returns=len(pending), timeout=0)[1] if pending else []:
                    ray.cancel(reference)

    def train(self, tasks: Sequence[TrainingTask]) -> list[Path]:
        """See Launcher. Ray Train restarts the workers from the last checkpoint if one dies.

        Several tasks of one worker each run at the same time, as Ray tasks; of several workers, they run in turn.
        """
        if len(tasks) == 1 or self._job.workers > 1:
            return [self._train(task) for task in tasks]
        for _ in self.run_tasks(train_alone, [task.pack() for task in tasks]):
            pass
        return [last_checkpoint(task) for task in tasks]

    def _train(self, task: TrainingTask) -> Path:
        from ray.train import TrainingFailedError

        from moe_dist.launch.ray_trainer import fit, train_worker

        task.checkpoints.mkdir(parents=True, exist_ok=True)
        forget_ray_snapshot(task)
        of, workers, heard = f"the training of {task.model}", task.job.workers, Heard.of(task)
        restarts = RestartWatch(self._show, heard, of, workers, self._survived)
        try:
            with watch_training(self._show, heard, restarts.look), no_torn_checkpoint(task.checkpoints):
                fit(task, train_worker)
        except TrainingFailedError as error:
            restarts.look()
            raise UserError(
                f"the training of {task.model} failed more than {task.job.checkpoint.max_failures} times "
                "(checkpoint.max_failures); go on from its last checkpoint with --resume. The last failure: "
                f"{restarts.last_fault or error}"
            ) from error
        restarts.ended()
        return last_checkpoint(task)


def forget_ray_snapshot(task: TrainingTask) -> None:
    """Remove Ray Train's snapshot and superseded checkpoints, so that the training continues from the newest one.

    The snapshot may name checkpoints that a local run has since replaced or removed.
    """
    (task.checkpoints / "checkpoint_manager_snapshot.json").unlink(missing_ok=True)
    for old in superseded(task.checkpoints, task.job.checkpoint.keep):
        shutil.rmtree(old)


def _run_task(function: TaskFunction, common: Any, item: Any, resources: dict[str, Any], progress_path: str) -> Any:
    """Run one task in a Ray worker process."""
    asked = ResourceConfig.model_validate(resources)
    use_threads(asked.cpus_per_task)
    path = Path(progress_path)
    progress = ProgressFile(path)
    with raising_disk_errors(path.parent.parent, "what a task leaves"):
        begin_task(path)
        result = function(common, item, Context(device_of(asked.gpus_per_task), progress))
        progress(1, 1)
    return result


def _result(reference: Any) -> Any:
    """The result of a task; its UserError, if it raised one, is raised as such, and one if its workers died."""
    import ray

    try:
        return ray.get(reference)
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError, ray.exceptions.OutOfMemoryError) as error:
        raise UserError(
            f"the worker of a task died {TASK_RETRIES + 1} times (out of memory, or killed); give tasks more memory "
            "(resources.cpus_per_task: fewer of them run on a machine at a time), and go on with --resume. It said: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
