"""A stream of Ray tasks: as many run at a time as there are workers, however many millions of items are to come."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from moe_dist.errors import UserError
from moe_dist.launch.launcher import use_threads
from moe_dist.launch.ray import started_ray
from moe_dist.terminal import Show

RETRIES = 3
"""How often a task is given to another worker process after its own died."""


class RayStream:
    """Runs a function on items in worker processes of the Ray to which this process is connected."""

    def __init__(self, workers: int, gpus: float) -> None:
        self._workers, self._gpus = workers, gpus

    def __call__(self, function: Callable[[Any, Any], Any], items: Iterable[Any], common: Any) -> Iterator[Any]:
        """Yield function(common, item) for each item, as they are finished; as many at a time as there are workers."""
        import ray

        remote = ray.remote(_call).options(num_cpus=1, num_gpus=self._gpus, max_retries=RETRIES)
        shared = ray.put(common)
        running: list[Any] = []
        try:
            for item in items:
                running.append(remote.remote(function, shared, item))
                if len(running) == self._workers:
                    (done,), running = ray.wait(running, num_returns=1)
                    yield ray.get(done)
            while running:
                (done,), running = ray.wait(running, num_returns=1)
                yield ray.get(done)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise error.cause from None
            raise
        finally:
            for reference in ray.wait(running, num_returns=len(running), timeout=0)[1] if running else []:
                ray.cancel(reference)  # Ray can crash if a finished task is cancelled


@contextlib.contextmanager
def ray_stream(workers: int, show: Show) -> Iterator[RayStream]:
    """Connect to the cluster of RAY_ADDRESS, or start an embedded Ray; a worker has a GPU where the cluster has any."""
    with started_ray(max(workers, os.cpu_count() or 1), show):
        import ray

        have = ray.cluster_resources()
        if workers > have.get("CPU", 0):
            show.notice(
                f"the cluster has {have.get('CPU', 0):g} CPUs for {workers} workers: fewer run at the same time"
            )
        yield RayStream(workers, 1.0 if have.get("GPU", 0) >= 1 else 0.0)


def _call(function: Callable[[Any, Any], Any], common: Any, item: Any) -> Any:
    """Run the function in a Ray worker process."""
    use_threads(1)
    return function(common, item)
