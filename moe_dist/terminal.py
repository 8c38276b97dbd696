"""The terminal of commands, and the display of a run's progress on it.

All that is printed goes through this file, as plain text with a style beside it: a folder called `exp[v2]` or `x[/y]`
is printed as that, where rich would read a style into it. Lines are not broken, so that paths can be copied.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as LiveBars
from rich.table import Column, Table
from rich.text import Text

LOG_COLUMNS = 120
"""Width of output into a file or a pipe; with 80, the table of a search is cut."""
POLL_SECONDS = 0.3
LINE_EVERY_SECONDS = 30.0
"""Time between two lines of progress in a log, which has no live bars."""
FAILED_LOOKS_TOLD = 10
"""Number of failures in a row after which the user is told; a single one may be a file that is being removed."""

console = Console(highlight=False)
errors = Console(highlight=False, stderr=True)
for _of_a_log in (console, errors):
    if not _of_a_log.is_terminal:
        _of_a_log.width = LOG_COLUMNS


def log_console(log: TextIO) -> Console:
    """A console that writes into an open log."""
    return Console(file=log, highlight=False, width=LOG_COLUMNS)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """Print a line of plain texts; a pair is a text and its style."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def say_table(console: Console, table: RenderableType) -> None:
    """Print a table, whose cells are `Text`, or several parts below each other."""
    console.print(table)


def redraw(console: Console, draw: Callable[[], RenderableType | None], every_seconds: float) -> None:
    """Draw in place what `draw` returns, again and again, until it returns None."""
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while (drawn := draw()) is not None:
            live.update(drawn, refresh=True)
            time.sleep(every_seconds)


def plain_table(header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", caption: str = "") -> Table:
    """A table of plain texts."""
    columns = (Column(Text(name)) for name in header)
    table = Table(*columns, title=Text(title) if title else None, caption=Text(caption) if caption else None)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def plain_facts(facts: Mapping[str, str]) -> Table:
    """A table of two columns without lines: what is told, and what there is to tell."""
    table = Table.grid(Column(style="dim", no_wrap=True), Column(overflow="fold"), padding=(0, 1))
    for title, text in facts.items():
        table.add_row(Text(f"  {title}"), Text(text))
    return table


def short(path: Path) -> str:
    """A path, relative to the current directory if it is below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def duration(seconds: float) -> str:
    """A duration in words: in s below two minutes, in min below two hours, else in h."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"


class Show:
    """Displays the progress of a run: live bars on a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars: LiveBars | None = None
        self._task: TaskID | None = None
        self._started = self._next_line = self._done_before = 0.0
        self._split = ""

    def headline(self, text: str) -> None:
        """Print the headline of a part of the run."""
        say(self.console, "\n", (text, "bold"))

    def notice(self, text: str) -> None:
        """Print a warning."""
        say(self.console, "  ", ("!", "yellow"), f" {text}")

    def aside(self, text: str) -> None:
        """Print what is good to know, less striking than a warning."""
        say(self.console, (f"    {text}", "dim"))

    def skipped(self, title: str, seconds: float) -> None:
        """Print that a result is reused, for which an earlier run took `seconds`."""
        self._ended("=", "green", title, f"kept from an earlier run ({duration(seconds)})")

    def ended(self, title: str, how: str) -> None:
        """Print that something ended well that was not shown while it was at work."""
        self._ended("+", "green", title, how)

    @contextlib.contextmanager
    def working(self, title: str) -> Iterator[None]:
        """Display the step `title` while the block runs, and print its time at the end, even if it fails."""
        self._split = ""
        self.count_from(0)
        started = self._started
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False),
        )
        with LiveBars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            self._bars, self._task = bars, bars.add_task(title, total=None, note="", left="")
            try:
                yield
            except BaseException:
                self._ended("x", "red", title, f"after {duration(time.perf_counter() - started)}")
                raise
            finally:
                self._bars = self._task = None
        self._ended("+", "green", title, duration(time.perf_counter() - started))

    def _ended(self, mark: str, colour: str, title: str, how: str) -> None:
        say(self.console, "  ", (mark, colour), f" {title} ", (how, "dim"))

    def count_from(self, done: float) -> None:
        """Estimate the time left from now on, without the time of the first `done`, which were done elsewhere."""
        self._started, self._done_before = time.perf_counter(), done
        self._next_line = self._started + LINE_EVERY_SECONDS

    def update(self, done: float, total: float, note: str = "") -> None:
        """Display that `done` of `total` is done, with a note and the time left (see `count_from`)."""
        now = time.perf_counter()
        left = ""
        if self._done_before < done < total:
            left = f"about {duration((now - self._started) * (total - done) / (done - self._done_before))} left"
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, completed=done, total=total, note=note, left=left)
        if left:
            self._line(f"{done / total:.0%} {note}, {left}", now)

    def stalled(self, note: str) -> None:
        """Display a note in place of the time left, which nobody knows while the work does not go on."""
        if self._bars is not None and self._task is not None:
            self._bars.update(self._task, note=note, left="")
        self._line(note, time.perf_counter())

    def _line(self, text: str, now: float) -> None:
        """Print a line of progress into a log, if it is time for one."""
        if not self.console.is_terminal and now >= self._next_line:
            self._next_line = now + LINE_EVERY_SECONDS
            self.aside(text)

    def shards(self, split: str, done: int, total: int) -> None:
        """Display that `done` of a split's `total` images are in shards, and the rate of writing."""
        if split != self._split:
            self._split = split
            self.count_from(done)
        now = time.perf_counter()
        rate = (done - self._done_before) / (now - self._started) if now > self._started else 0
        self.update(done, total, f"{split} {done:,}/{total:,} images, {rate:,.0f}/s")

    @contextlib.contextmanager
    def watching(self, look: Callable[[], tuple[float, float, str] | None]) -> Iterator[None]:
        """Call `look` for (done, total, note) a few times a second while the block runs, and display the result.

        Exceptions of `look` do not end the block. If they repeat, the user is told.
        """

        def once() -> None:
            if seen := look():
                self.update(*seen)

        with self.looking(once, POLL_SECONDS, "progress cannot be shown"):
            yield

    @contextlib.contextmanager
    def looking(self, look: Callable[[], None], every_seconds: float, in_vain: str) -> Iterator[None]:
        """Call `look` again and again while the block runs.

        Its exceptions do not end the block. If they repeat, the user is told in the words of `in_vain`.
        """
        stop = threading.Event()

        def watch() -> None:
            failed = 0
            while not stop.wait(every_seconds):
                try:
                    look()
                    failed = 0
                except Exception as error:  # of any kind, because it does not affect the work
                    failed += 1
                    if failed == FAILED_LOOKS_TOLD:
                        self.notice(f"{in_vain} ({type(error).__name__}: {error}); the work goes on")

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
