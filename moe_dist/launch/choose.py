"""Opens a launcher by its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.ray_address import cluster_address
from moe_dist.record.restarts import Survived, forget
from moe_dist.terminal import Show

LAUNCHERS = ("ray", "local")


def require_launcher(name: str) -> None:
    """Raise UserError for a launcher there is not, and where RAY_ADDRESS names a cluster that does not answer."""
    if name not in LAUNCHERS:
        raise UserError(f"--launcher {name}: choose {' or '.join(LAUNCHERS)}")
    if name == "ray":
        cluster_address()


def open_launcher(
    name: str, job: Job, run: Path, show: Show, survived: Survived = forget
) -> AbstractContextManager[Launcher]:
    """A context manager that starts the launcher `name`. Raises UserError as `require_launcher` does.

    survived: is given what the launcher started again because a worker was lost.
    """
    require_launcher(name)
    if name == "ray":
        from moe_dist.launch.ray import ray_launcher

        return ray_launcher(job, run, show, survived)
    from moe_dist.launch.local import LocalLauncher

    return nullcontext(LocalLauncher(job, run, show))
