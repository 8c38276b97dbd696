"""The progress of tasks and trainings, in files that any node can write and the driver reads."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from moe_dist.files import read_json, write_json, write_text
from moe_dist.launch.heard import Heard
from moe_dist.record.restarts import Survived, forget, restart
from moe_dist.terminal import Show, duration

WRITE_EVERY_SECONDS = 0.25
SILENT_AFTER_SECONDS = 15.0
"""Time without a line of the log, after which the user is told; later where lines were far apart until then."""
LONGER_THAN_GAPS = 3
"""How many times the longest time between two lines is waited for."""


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
def watch_tasks(show: Show, run: Path, items: int, survived: Survived = forget) -> Iterator[Path]:
    """Show the progress of `items` tasks while the block runs; each task counts as one.

    The block gets an empty folder in the run directory, which every node can reach. A task writes <number>.json there.
    survived: is given each task that was begun again (`begin_task`), which the user is told as well.
    """
    folder = run / ".progress"
    told: set[Path] = set()

    def look() -> tuple[float, float, str]:
        for path in sorted(set(folder.glob("*.again")) - told):
            told.add(path)
            again = json.loads(path.read_text())
            show.notice(f"{again['what']}; it is begun again")
            survived(again)
        parts = [json.loads(path.read_text()) for path in folder.glob("*.json")]
        done = sum(part / whole for part, whole in parts)
        return done, items, f"{int(done)}/{items}" if items > 1 else ""

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        with show.watching(look):
            yield folder
    finally:
        with contextlib.suppress(OSError, ValueError):
            look()  # for a task that was begun again since the last look
        shutil.rmtree(folder, ignore_errors=True)


def begin_task(progress: Path) -> None:
    """Note that a task begins, next to its progress; if it was begun before, its process was lost, which is noted."""
    begun = progress.with_suffix(".begun")
    before, now = read_json(begun), {"time": time.time(), "host": socket.gethostname(), "process": os.getpid()}
    if before:
        what = f"the worker of task {progress.stem} (process {before['process']} on {before['host']}) died"
        lost = max(0.0, now["time"] - before["time"])
        again = restart(f"task {progress.stem}", "worker died", what, seconds_lost=lost)
        write_json(progress.with_suffix(f".{now['process']}.again"), again, lasting=False)
    write_json(begun, now, lasting=False)


def watch_training(
    show: Show, heard: Heard, also: Callable[[], None] = lambda: None
) -> contextlib.AbstractContextManager[None]:
    """Show the progress of a training while the block runs, from the log that rank 0 writes.

    also: is called before each look.
    """
    progress = training_progress(show, heard)

    def look() -> tuple[float, float, str] | None:
        also()
        return progress()

    return show.watching(look)


def training_progress(show: Show, heard: Heard) -> Callable[[], tuple[float, float, str] | None]:
    """A function that returns (done, total, note) of the newest line, or None before this run has written one.

    Lines that are there already belong to an earlier run. The time left is estimated from the first new line on,
    because the time that workers take to start says nothing about it, and anew after a restart. While no line comes,
    which it tells, it returns None.
    """
    written_before = (heard.newest() or {}).get("time", 0.0)
    counted_from: int | None = None
    silence = Silence()

    def look() -> tuple[float, float, str] | None:
        nonlocal counted_from
        line = heard.newest()
        if line is None or line["time"] <= written_before:
            return None
        if counted_from is None or line["step"] < counted_from:
            show.count_from(line["step"])
        counted_from = line["step"]
        if told := silence.heard(line):
            show.stalled(told)
            return None
        rate = f", {line['images_per_second']:.0f} images/s" if "images_per_second" in line else ""
        note = f"{line['stage']} epoch {line['epoch'] + 1}, loss {line['loss']:.4f}{rate}"
        return line["step"], line["of_steps"], note

    return look


class Silence:
    """Notices that no line of a log has come for long, compared with how far apart they were until then."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, now: Callable[[], float] = time.time) -> None:
        self._clock, self._now = clock, now
        self._line: dict[str, Any] | None = None
        self._since, self._longest_gap = 0.0, 0.0

    def heard(self, line: dict[str, Any]) -> str:
        """Take the newest line: what is to be said if it has been the newest for too long, else an empty string."""
        moment = self._clock()
        if line != self._line:
            if self._line is not None:
                self._longest_gap = max(self._longest_gap, moment - self._since)
            self._line, self._since = line, moment
        silent = moment - self._since
        if silent < max(SILENT_AFTER_SECONDS, LONGER_THAN_GAPS * self._longest_gap):
            return ""
        since = time.strftime("%H:%M:%S", time.localtime(self._now() - silent))
        return f"no step since {since} ({duration(silent)}), the last one heard of is {line['step']}"
