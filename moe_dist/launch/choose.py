"""Opens a launcher by its name."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.terminal import Show


def open_launcher(name: str, job: Job, run: Path, show: Show) -> AbstractContextManager[Launcher]:
    """A context manager that starts the launcher `name`, ray or local. Raises UserError for another name."""
    if name == "ray":
        from moe_dist.launch.ray import ray_launcher

        return ray_launcher(job, run, show)
    if name == "local":
        from moe_dist.launch.local import LocalLauncher

        return nullcontext(LocalLauncher(job, run, show))
    raise UserError(f"--launcher {name}: choose ray or local")
