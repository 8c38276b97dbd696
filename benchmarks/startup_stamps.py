"""A run that notes when it gets where: the process that benchmarks/startup.py starts instead of `moe-dist run`.

    python -c 'from benchmarks.startup_stamps import main; main()' STAMPS JOB [options of moe-dist run]

A stamp is a line "name seconds" of the file STAMPS, also from the workers; only a name's first one counts.
"""

from __future__ import annotations

import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

FILE = "MOE_DIST_STAMPS"
"""The environment variable that names the file of stamps."""


def stamp(name: str) -> None:
    """Note that `name` is done now."""
    with open(os.environ[FILE], "a", encoding="utf-8") as file:
        file.write(f"{name} {time.time()}\n")


def stamped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, noting when it has returned."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        stamp(name)
        return result

    return call


def main() -> None:
    """What `moe-dist run` does, stamped."""
    os.environ[FILE] = sys.argv.pop(1)
    stamp("python")
    import moe_dist.cli as cli

    stamp("command")
    sys.argv[1:1] = ["run"]
    import moe_dist.run.run as run
    from moe_dist.grid import cells  # noqa: F401

    stamp("imports")
    run.ensure_shards = stamped("shards", run.ensure_shards)
    run.open_data = stamped("data", run.open_data)
    opened = run.open_launcher

    @contextmanager
    def open_launcher(*arguments: Any, **options: Any) -> Iterator[Any]:
        with opened(*arguments, **options) as launcher:
            stamp("launcher")
            if launcher.name == "ray":
                stamp_workers()
            else:
                stamp_training()
            yield launcher

    run.open_launcher = open_launcher
    cli.main()


def stamp_workers() -> None:
    """Let Ray Train's workers stamp."""
    import moe_dist.launch.ray_trainer as trainer

    stamp("ray_train")
    trainer.train_worker = train_worker


def train_worker(packed: dict[str, Any]) -> None:
    """As ray_trainer.py's, stamped on the first rank."""
    import ray.train

    first = ray.train.get_context().get_world_rank() == 0
    if first:
        stamp("worker")
    import moe_dist.launch.ray_trainer as trainer

    if first:
        stamp_training()
    trainer.train_worker(packed)


def stamp_training() -> None:
    """Let the training in this process stamp."""
    import moe_dist.train.loop as loop
    import moe_dist.train.task as task
    from moe_dist.train.session import Session

    stamp("loop")
    task.open_data = stamped("opened", task.open_data)
    task.build_network = stamped("network", task.build_network)
    loop.TrainingLog.__init__ = stamped("log", loop.TrainingLog.__init__)  # type: ignore[method-assign]
    Session.__init__ = stamped("session", Session.__init__)  # type: ignore[method-assign]
    loop.train_step = stamped("step", stamping_batch(loop.train_step))


def stamping_batch(train_step: Callable[..., Any]) -> Callable[..., Any]:
    """`train_step`, noting when it gets its batch."""

    @functools.wraps(train_step)
    def call(*arguments: Any) -> Any:
        stamp("batch")
        return train_step(*arguments)

    return call
