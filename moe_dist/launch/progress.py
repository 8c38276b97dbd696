"""The progress of tasks and trainings, in files that any node can write and the driver reads."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from moe_dist.data.storage.store import join, local_file
from moe_dist.errors import UserError
from moe_dist.files import write_text
from moe_dist.record.mirror import EVERY_SECONDS, ONCE
from moe_dist.terminal import Show
from moe_dist.train.log import METRICS, last_metrics
from moe_dist.train.task import TrainingTask

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


def watch_training(show: Show, task: TrainingTask) -> contextlib.AbstractContextManager[None]:
    """Show the progress of a training while the block runs, from the metrics.jsonl that rank 0 writes."""
    metrics = task.folder / METRICS
    if task.url is None:
        return show.watching(training_progress(show, metrics))
    return show.watching(training_progress(show, metrics, PushedMetrics(join(task.url, task.in_run(metrics)))))


class PushedMetrics:
    """Reads the last line of a metrics.jsonl at its URL instead of here, every few seconds."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._next = 0.0
        self._last: dict | None = None

    def __call__(self, metrics: Path) -> dict | None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + EVERY_SECONDS
            with contextlib.suppress(UserError), local_file(self._url, ONCE) as copy:
                self._last = last_metrics(copy)
        return self._last


def training_progress(
    show: Show, metrics: Path, read: Callable[[Path], dict | None] = last_metrics
) -> Callable[[], tuple[float, float, str] | None]:
    """A function that returns (done, total, note) of the newest line, or None before this run has written one.

    read: returns the last line of `metrics`. Lines that are there already belong to an earlier run. The time left is
    estimated from the first new line on, because the time that workers take to start says nothing about it.
    """
    written_before = (read(metrics) or {}).get("time", 0.0)
    counting = False

    def look() -> tuple[float, float, str] | None:
        nonlocal counting
        line = read(metrics)
        if line is None or line["time"] <= written_before:
            return None
        if not counting:
            counting = True
            show.count_from(line["step"])
        rate = f", {line['images_per_second']:.0f} images/s" if "images_per_second" in line else ""
        note = f"{line['stage']} epoch {line['epoch'] + 1}, loss {line['loss']:.4f}{rate}"
        return line["step"], line["of_steps"], note

    return look
