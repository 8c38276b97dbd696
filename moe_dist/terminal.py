"""The terminal that commands print to."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_COLUMNS = 120
"""Width of what is printed into a file or a pipe: with 80 the cells of a search's table are cut."""

console = Console(highlight=False)
if not console.is_terminal:
    console.width = LOG_COLUMNS


def short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


POLL_SECONDS = 0.3

LINE_EVERY_SECONDS = 30.0
"""Where there is no terminal (a log that is followed), progress is a line now and then."""

FAILED_LOOKS_TOLD = 10
"""One look may meet a file that is being removed; where so many fail one after another, nobody will see progress."""


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


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60):02d} s" if seconds < 3600 else f"{seconds / 3600:.2f} h"
