"""The terminal that commands print to, and how a run's progress is shown on it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as LiveBars

LOG_COLUMNS = 120
"""Width of what is printed into a file or a pipe: at 80 the cells of a search's table are cut."""
POLL_SECONDS = 0.3
LINE_EVERY_SECONDS = 30.0
"""Time between two lines of progress where there is no terminal but a log that somebody follows."""
FAILED_LOOKS_TOLD = 10
"""Number of failures in a row after which the user is told. One alone may be a file that is just being removed."""

console = Console(highlight=False)
if not console.is_terminal:
    console.width = LOG_COLUMNS


def short(path: Path) -> str:
    """A path as one would type it in the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def duration(seconds: float) -> str:
    """A length of time in a unit that suits it: s up to two minutes, min up to two hours, h beyond."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


class Show:
    """Prints a run's progress to the console: live bars on a terminal, plain lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: LiveBars | None = None
        self._task: TaskID | None = None
        self._started = self._next_line = self._done_before = 0.0
        self._split = ""

    def headline(self, text: str) -> None:
        """Print a line that opens a part of the run."""
        self.console.print(f"\n[bold]{text}[/]")

    def notice(self, text: str) -> None:
        """Print something that the user should know and that stops nothing."""
        self.console.print(f"  [yellow]![/] {escape(text)}")

    def skipped(self, title: str, seconds: float) -> None:
        """Print that the result of a step is used again; an earlier run took `seconds` for it."""
        self.console.print(f"  [green]=[/] {title} [dim]kept from an earlier run ({duration(seconds)})[/]")

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Show the step `title` while the block runs, and print its time at the end, also if it fails."""
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
        with LiveBars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            self._bars, self._task = bars, bars.add_task(title, total=None, note="")
            try:
                yield
            except BaseException:
                self.console.print(f"  [red]x[/] {title} [dim]after {duration(time.perf_counter() - started)}[/]")
                raise
            finally:
                self._bars = self._task = None
        self.console.print(f"  [green]+[/] {title} [dim]{duration(time.perf_counter() - started)}[/]")

    def count_from(self, done: float) -> None:
        """Estimate the time left from now on by what is done beyond `done`, which took its time elsewhere."""
        self._started, self._done_before = time.perf_counter(), done
        self._next_line = self._started + LINE_EVERY_SECONDS

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show that `done` of `total` is done, with the time left (`count_from`) and a note."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note)
        now = time.perf_counter()
        if not self.console.is_terminal and self._done_before < done < total and now >= self._next_line:
            self._next_line = now + LINE_EVERY_SECONDS
            left = (now - self._started) * (total - done) / (done - self._done_before)
            self.console.print(f"    [dim]{done / total:.0%} {escape(note)}, about {duration(left)} left[/]")

    def shards(self, split: str, done: int, total: int) -> None:
        """Show that `done` of a split's `total` images are in shards, and how many are written a second."""
        if split != self._split:
            self._split = split
            self.count_from(done)
        now = time.perf_counter()
        rate = (done - self._done_before) / (now - self._started) if now > self._started else 0
        self.update(done, total, f"{split} {done:,}/{total:,} images, {rate:,.0f}/s")

    @contextlib.contextmanager
    def watching(self, look: Callable[[], tuple[float, float, str] | None]) -> Iterator[None]:
        """Call `look` for (done, total, note) a few times a second while the block runs, and show what it returns.

        An exception of `look` ends nothing; if it goes on failing, the user is told.
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
                except Exception as error:  # whatever it is, the work itself is not affected
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
