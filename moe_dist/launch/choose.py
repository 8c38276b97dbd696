"""Opens a launcher by its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.paths import is_url
from moe_dist.places import shared_cache
from moe_dist.ray_address import cluster_address
from moe_dist.record.restarts import Survived, forget
from moe_dist.record.run_place import RunPlace
from moe_dist.terminal import Show

LAUNCHERS = ("ray", "local")
RAY_TASK = "ray task"
"""The launcher of a run that is itself a task of Ray, as a grid's cell is (ray_runs.py); users name the others."""


def require_launcher(name: str, job: Job) -> None:
    """Raise UserError for a launcher there is not, for one that cannot run the job, and for a cluster that is away."""
    if name not in LAUNCHERS:
        raise UserError(f"--launcher {name}: choose {' or '.join(LAUNCHERS)}")
    if name == "local" and job.fewest_workers < job.workers:
        raise UserError(
            f"min_workers = {job.min_workers}: --launcher local trains on this machine alone, where no node goes or "
            "comes; add --set min_workers=null, or use --launcher ray"
        )
    if name == "ray":
        cluster_address()


def require_shared_folders(name: str, run: RunPlace, show: Show) -> None:
    """Raise UserError where the launcher's cluster has a node that does not share the run directory or the cache.

    What is at a URL is no folder that nodes could share.
    """
    if name == "ray" and cluster_address():
        from moe_dist.launch.ray import started_ray
        from moe_dist.launch.ray_nodes import require_shared

        places = {"--out": run.url or run.folder, "MOE_DIST_CACHE": shared_cache()}
        folders = {name: Path(place) for name, place in places.items() if not is_url(str(place))}
        if folders:
            with started_ray(1, show), show.working("look at the nodes' folders"):
                require_shared(folders)


def open_launcher(
    name: str, job: Job, run: Path, show: Show, survived: Survived = forget
) -> AbstractContextManager[Launcher]:
    """A context manager that starts the launcher `name`. Raises UserError as `require_launcher` does.

    survived: is given what the launcher started again because a worker was lost.
    """
    if name == RAY_TASK:
        from moe_dist.launch.ray_runs import TaskLauncher

        return nullcontext(TaskLauncher(job, run, show, survived))
    require_launcher(name, job)
    if name == "ray":
        from moe_dist.launch.ray import ray_launcher

        return ray_launcher(job, run, show, survived)
    from moe_dist.launch.local import LocalLauncher

    return nullcontext(LocalLauncher(job, run, show))
