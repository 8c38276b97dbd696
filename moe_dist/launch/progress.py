"""The progress of tasks and trainings, in files that any node can write and the driver reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_dist.files import write_text
from moe_dist.terminal import Show
from moe_dist.train.log import last_metrics

WRITE_EVERY_SECONDS = 0.25


class ProgressFile:
    """Writes a task's progress to a file: call it as progress(done, total), as often as you like."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, done: float, total: float) -> None:
        now = time.monotonic()
        if now < self._next and done < total:
            return
        self._next = now + WRITE_EVERY_SECONDS
        if not self._path.parent.is_dir():  # the driver has stopped reading
            return
        write_text(self._path, json.dumps([done, total]), lasting=False)


@contextlib.contextmanager
def watch_tasks(show: Show, run: Path, items: int) -> Iterator[Path]:
    """Show the progress of `items` tasks while the block runs; each task counts as one.

    The block gets an empty folder in the run directory, which every node can reach. A task writes <number>.json there.
    """
    folder = run / ".progress"

    def look() -> tuple[float, float, str]:
        parts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        done = sum(part / whole for part, whole in parts)
        return done, items, f"{int(done)}/{items}" if items > 1 else ""

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with show.watching(look):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def watch_training(show: Show, folder: Path) -> contextlib.AbstractContextManager[None]:
    """Show the progress of a training while the block runs, from the metrics.jsonl that rank 0 writes in `folder`."""
    return show.watching(training_progress(show, folder / "metrics.jsonl"))


def training_progress(show: Show, metrics: Path) -> Callable[[], tuple[float, float, str] | None]:
    """A function that returns (done, total, note) of the newest line, or None before this run has written one.

    Lines that are there already belong to an earlier run. The time left is estimated from the first new line on,
    because the time that workers take to start says nothing about it.
    """
    written_before = (last_metrics(metrics) or {}).get("time", 0.0)
    counting = False

    def look() -> tuple[float, float, str] | None:
        nonlocal counting
        line = last_metrics(metrics)
        if line is None or line["time"] <= written_before:
            return None
        if not counting:
            counting = True
            show.count_from(line["step"])
        rate = f", {line['images_per_second']:.0f} images/s" if "images_per_second" in line else ""
        note = f"{line['stage']} epoch {line['epoch'] + 1}, loss {line['loss']:.4f}{rate}"
        return line["step"], line["of_steps"], note

    return look
