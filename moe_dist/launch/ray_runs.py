"""Whole runs beside each other on one Ray: each is a task, and the cluster's devices say how many run at a time.

1. A run is a task of one process, which makes in place what one process can make on CPUs: a training of one worker, a
   single task. It holds the CPUs for that, and nothing is started anew for it.
2. What needs several processes or a GPU goes to Ray, as in any run; while the task waits for that, Ray gives its CPUs
   away. It holds no GPU itself, or two runs could wait for each other's.
3. So that no more processes live than the cluster has devices for, runs are started as long as all that they need at
   most is there; then one more, which waits in Ray's queue: an autoscaled cluster grows by what waits there.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.launcher import device_of
from moe_dist.launch.local import LocalLauncher
from moe_dist.launch.ray import RayLauncher, embedded_cpus, require_resources, started_ray
from moe_dist.methods.phases import TaskFunction
from moe_dist.record.restarts import Survived, forget
from moe_dist.terminal import Show
from moe_dist.train.task import TrainingTask

LAST_SECONDS = 5.0
"""How long runs that are cancelled may take to write that they were stopped."""


def needs(job: Job) -> dict[str, float]:
    """The CPUs and GPUs that a run of the job uses at most at a time, without tasks beside each other."""
    asked = job.resources
    return {
        "CPU": max(job.workers * asked.cpus_per_worker, asked.cpus_per_task),
        "GPU": max(job.workers * asked.gpus_per_worker, asked.gpus_per_task),
    }


def trains_in_place(job: Job) -> bool:
    """Whether the run's own process trains."""
    return job.workers == 1 and not needs(job)["GPU"]


@contextlib.contextmanager
def ray_runs(jobs: Sequence[Job], show: Show) -> Iterator[RayRuns]:
    """Connect to a cluster, or start an embedded Ray that has the CPUs for the largest of the jobs."""
    with started_ray(max(map(embedded_cpus, jobs)), show) as is_shared:
        import ray

        if is_shared:
            for asked in {job.resources.model_dump_json() + str(job.workers): job for job in jobs}.values():
                require_resources(asked, ray.cluster_resources(), show)
        runs = RayRuns(is_shared)
        try:
            yield runs
        finally:
            runs.cancel()


class RayRuns:
    """Runs on the Ray to which this process is connected, by name."""

    def __init__(self, is_cluster: bool) -> None:
        """is_cluster: whether it is not this machine's alone, so that GPUs may be elsewhere."""
        self._is_cluster = is_cluster
        self._at_work: dict[Any, str] = {}
        self._needs: dict[str, dict[str, float]] = {}

    def have_room(self, job: Job) -> bool:
        """Whether all that a run of the job needs is there, beside the runs at work."""
        return self._is_there([*self._needs.values(), needs(job)])

    @property
    def one_waits(self) -> bool:
        """Whether more was started than there is room for."""
        return not self._is_there([*self._needs.values()])

    def _is_there(self, asked: Sequence[Mapping[str, float]]) -> bool:
        """Whether the cluster has all that is asked for; sums of fractions are compared with a tolerance."""
        import ray

        have, sums = ray.cluster_resources(), Counter[str]()
        for need in asked:
            sums.update(need)
        return all(amount <= have.get(kind, 0) + 1e-6 for kind, amount in sums.items())

    def start(self, name: str, job: Job, function: Callable[..., None], *arguments: Any) -> None:
        """Start function(*arguments) as the task of a run of the job. It is run again where its process or node dies.

        Raises UserError where the job asks for a GPU and this machine, on which Ray was started, has none.
        """
        import ray

        asked = job.resources
        device_of(0 if self._is_cluster else needs(job)["GPU"])
        cpus = max(asked.cpus_per_worker, asked.cpus_per_task) if trains_in_place(job) else asked.cpus_per_task
        remote = ray.remote(function).options(num_cpus=cpus, max_retries=job.checkpoint.max_failures)
        self._at_work[remote.remote(*arguments)] = name
        self._needs[name] = needs(job)

    def ended(self, seconds: float) -> Mapping[str, str]:
        """The runs that have ended, after `seconds` at most: by name, why it was lost, or "" for one that returned.

        Raises the UserError of a run that raised one.
        """
        import ray

        found: dict[str, str] = {}
        for reference in ray.wait([*self._at_work], timeout=seconds)[0]:
            name = self._at_work.pop(reference)
            del self._needs[name]
            found[name] = _why_lost(reference)
        return found

    def cancel(self) -> None:
        """Stop all that run, as Ctrl-C would. Ray can crash if a finished task is cancelled."""
        import ray

        if not self._at_work:
            return
        running = ray.wait([*self._at_work], num_returns=len(self._at_work), timeout=0)[1]
        for reference in running:
            ray.cancel(reference)
        if running:
            ray.wait(running, num_returns=len(running), timeout=LAST_SECONDS)


def _why_lost(reference: Any) -> str:
    """Why a task has no result; "" if it has one. Its UserError is raised."""
    import ray

    try:
        ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        return f"its process was lost too often (checkpoint.max_failures): {' '.join(str(error).split())}"
    return ""


class TaskLauncher(RayLauncher):
    """The launcher of a run that is a task of Ray itself: in place what one process can make, by Ray all else."""

    def __init__(self, job: Job, run: Path, show: Show, survived: Survived = forget) -> None:
        super().__init__(job, run, show, survived)
        self._here = LocalLauncher(job, run, show)

    def run_tasks(self, function: TaskFunction, items: Sequence[Any], common: Any = None) -> Iterator[Any]:
        """See Launcher."""
        if len(items) == 1 and not self._job.resources.gpus_per_task:
            return self._here.run_tasks(function, items, common)
        return super().run_tasks(function, items, common)

    def train(self, tasks: Sequence[TrainingTask]) -> list[Path]:
        """See Launcher."""
        if len(tasks) == 1 and trains_in_place(self._job):
            return self._here.train(tasks)
        return super().train(tasks)
