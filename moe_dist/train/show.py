"""What a person sees while a run goes on: one line a step, with progress, rate and time left."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

POLL_SECONDS = 0.3
LINE_EVERY_SECONDS = 30.0
"""Where there is no terminal (a log that is followed), progress is a line now and then."""
FAILED_LOOKS_TOLD = 10
"""One look may meet a file that is being removed; where so many fail one after another, nobody will see progress."""
TAIL_BYTES = 64 * 2**10
"""Longer than any line of a metrics.jsonl: an epoch of 100 experts takes 5 KiB."""


class Show:
    """Prints the run's progress to the console; live bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._next_line = self._done_before = 0.0
        self._split = ""

    def headline(self, text: str) -> None:
        """A line that opens a part of the run."""
        self.console.print(f"\n[bold]{text}[/]")

    def notice(self, text: str) -> None:
        """Something the user should know, without stopping."""
        self.console.print(f"  [yellow]![/] {escape(text)}")

    def skipped(self, title: str, seconds: float) -> None:
        """A step whose result from an earlier run is used again."""
        self.console.print(f"  [green]=[/] {title} [dim]kept from an earlier run ({_duration(seconds)})[/]")

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[None]:
        """A step under way; a failure leaves a mark and goes on up."""
        self._split = ""
        self.count_from(0)
        started = self._started
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            self._progress, self._task = progress, progress.add_task(title, total=None, note="")
            try:
                yield
            except BaseException:
                self.console.print(f"  [red]x[/] {title} [dim]after {_duration(time.perf_counter() - started)}[/]")
                raise
            finally:
                self._progress = self._task = None
        self.console.print(f"  [green]+[/] {title} [dim]{_duration(time.perf_counter() - started)}[/]")

    def count_from(self, done: float) -> None:
        """From now on time left is told from what is done beyond `done`, which tells nothing of it."""
        self._started, self._done_before = time.perf_counter(), done
        self._next_line = self._started + LINE_EVERY_SECONDS

    def update(self, done: float, total: float, note: str = "") -> None:
        """How far the step under way is, with the time left (`count_from`)."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, note=note)
        now = time.perf_counter()
        if not self.console.is_terminal and self._done_before < done < total and now >= self._next_line:
            self._next_line = now + LINE_EVERY_SECONDS
            left = (now - self._started) * (total - done) / (done - self._done_before)
            self.console.print(f"    [dim]{done / total:.0%} {escape(note)}, about {_duration(left)} left[/]")

    def shards(self, split: str, done: int, total: int) -> None:
        """How far the building of a split's shards is, and how many images a second it writes."""
        if split != self._split:
            self._split = split
            self.count_from(done)
        now = time.perf_counter()
        rate = (done - self._done_before) / (now - self._started) if now > self._started else 0
        self.update(done, total, f"{split} {done:,}/{total:,} images, {rate:,.0f}/s")

    @contextlib.contextmanager
    def watching(self, look: Callable[[], tuple[float, float, str] | None]) -> Iterator[None]:
        """While the block runs, ask `look` for (done, total, note) a few times a second and show it.

        What `look` raises ends nothing; the user is told where it goes on.
        """
        stop = threading.Event()

        def watch() -> None:
            failed = 0
            while not stop.wait(POLL_SECONDS):
                try:
                    seen = look()
                    if seen:
                        self.update(*seen)
                    failed = 0
                except Exception as error:  # whatever it is, the work itself is not concerned
                    failed += 1
                    if failed == FAILED_LOOKS_TOLD:
                        self.notice(f"progress cannot be shown ({type(error).__name__}: {error}); the work goes on")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def watch_training(show: Show, folder: Path) -> contextlib.AbstractContextManager[None]:
    """Show a training's progress from the metrics.jsonl its rank 0 writes in `folder`, wherever that rank runs."""
    return show.watching(training_progress(show, folder / "metrics.jsonl"))


def training_progress(show: Show, metrics: Path) -> Callable[[], tuple[float, float, str] | None]:
    """What `watching` asks: (done, total, note) of the newest line, None before this run has written one.

    Lines that are there already are an earlier run's; some of them stay when this one goes on from its checkpoint. The
    first line that is newer is where this run's time begins: starting workers tells nothing of the time left.
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


def last_metrics(path: Path) -> dict | None:
    """The newest whole line of a metrics.jsonl, or None."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"}"):
            with contextlib.suppress(ValueError):  # a power cut may leave zeros inside a line
                return json.loads(line)
    return None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds < 3600 else f"{seconds / 3600:.2f} h"
