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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Loss:
    """That the process of a run was lost: in a clause, what Ray says of it, and whether the run was started again."""

    what: str
    said: str
    again: bool


class RayRuns:
    """Runs on the Ray to which this process is connected, by name.

    A run whose process or node died is started again here, not by Ray, which would print that and not say of which.
    """

    def __init__(self, is_cluster: bool) -> None:
        """is_cluster: whether it is not this machine's alone, so that GPUs may be elsewhere."""
        self._is_cluster = is_cluster
        self._at_work: dict[Any, str] = {}
        self._submit: dict[str, Callable[[], Any]] = {}
        self._allowed: dict[str, int] = {}
        self._lost: Counter[str] = Counter()
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
        """Start function(*arguments) as the task of a run of the job.

        It is started again where its process or node dies, checkpoint.max_failures times.
        Raises UserError where the job asks for a GPU and this machine, on which Ray was started, has none.
        """
        import ray

        asked = job.resources
        device_of(0 if self._is_cluster else needs(job)["GPU"])
        cpus = max(asked.cpus_per_worker, asked.cpus_per_task) if trains_in_place(job) else asked.cpus_per_task
        remote = ray.remote(function).options(num_cpus=cpus, max_retries=0)
        self._submit[name] = lambda: remote.remote(*arguments)
        self._allowed[name] = job.checkpoint.max_failures
        self._at_work[self._submit[name]()] = name
        self._needs[name] = needs(job)

    def ended(self, seconds: float) -> Mapping[str, Loss | None]:
        """The runs that have ended or were lost, after `seconds` at most, each with its loss, or None if it returned.

        Raises the UserError of a run that raised one.
        """
        import ray

        found: dict[str, Loss | None] = {}
        for reference in ray.wait([*self._at_work], timeout=seconds)[0]:
            name = self._at_work.pop(reference)
            found[name] = loss = self._loss(name, reference)
            if loss and loss.again:
                self._at_work[self._submit[name]()] = name
            else:
                del self._needs[name]
        return found

    def _loss(self, name: str, reference: Any) -> Loss | None:
        """How the process of a run was lost; None if it returned. Its UserError is raised."""
        import ray

        try:
            ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            self._lost[name] += 1
            allowed = self._allowed[name]
            if self._lost[name] <= allowed:
                return Loss(f"{_what_died(error)}; it is run again from what it has saved", str(error), again=True)
            return Loss(
                f"{_what_died(error)}, more often than checkpoint.max_failures = {allowed} allows; if memory ran out, "
                "let fewer cells run at a time (a larger resources.cpus_per_worker), and go on with --resume",
                str(error),
                again=False,
            )
        return None

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


def _what_died(error: Exception) -> str:
    """What took a run's process away, in a clause, from Ray's error."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError

    if isinstance(error, OutOfMemoryError):
        return "its process was ended because memory ran out"
    return "its node died" if isinstance(error, NodeDiedError) else "its process died (killed, or memory ran out)"


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
