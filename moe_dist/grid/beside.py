"""The cells of a grid beside each other, on Ray, as many at a time as its devices have room for.

A step or training that several cells need (of equal fingerprint) is made by the one that is started first; the others
are started when it is there, and take it over. Meanwhile, cells that need nothing of it have their turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from moe_dist.files import read_json
from moe_dist.grid.cell import noting_failure, packed, run_packed
from moe_dist.grid.cells import Cell
from moe_dist.grid.opened import Opened, files_made, is_done
from moe_dist.grid.state import log_file, note_failed, run_folder, state_file, state_of
from moe_dist.launch.ray_runs import Loss, RayRuns, ray_runs
from moe_dist.places import FINISHED, RECORD, shared_cache
from moe_dist.record.mirror import BOARD, CELLS, CHECKPOINTS, Mirror
from moe_dist.report.run import read_result
from moe_dist.terminal import Show, duration, short

LOOK_EVERY_SECONDS = 0.3
"""How often it is looked whether what cells wait for is there."""


def run_beside(cells: Sequence[Cell], folder: Path, show: Show, mirror: Mirror | None = None) -> None:
    """Run the cells that are not finished, into the grid's folder, which a mirror may keep at a URL."""
    opened = Opened(show)
    waiting = [cell for cell in cells if not is_done(folder, cell, opened, show)]
    if not waiting:
        return
    show.headline(f"{len(waiting)} of {len(cells)} cells, beside each other; what each prints: {CELLS}/<cell>.log")
    with ray_runs([cell.job for cell in waiting], show) as runs:
        Turns(waiting, folder, opened, show, runs, mirror).run()


class Turns:
    """Which cells wait, which are at work, and which of the waiting ones has the next turn."""

    def __init__(
        self,
        cells: Sequence[Cell],
        folder: Path,
        opened: Opened,
        show: Show,
        runs: RayRuns,
        mirror: Mirror | None = None,
    ) -> None:
        self._waiting = list(cells)
        self._all, self._folder, self._opened, self._show, self._runs = len(cells), folder, opened, show, runs
        self._mirror = mirror
        self._at_work: dict[str, Cell] = {}
        self._makes: dict[str, list[str]] = {}
        self._there: set[str] = set()

    def run(self) -> None:
        """Run all cells."""
        while self._waiting or self._at_work:
            while cell := self._next():
                self._waiting.remove(cell)
                with noting_failure(self._folder, cell, self._show):
                    url, makes = self._mirror.url if self._mirror else None, self._makes[cell.name]
                    about = packed(self._folder, cell, shared_cache(), url, makes)
                    self._runs.start(cell.name, cell.job, run_packed, about)
                    self._at_work[cell.name] = cell
            if self._at_work:
                for name, loss in self._runs.ended(LOOK_EVERY_SECONDS).items():
                    if loss and loss.again:
                        cell = self._at_work[name]
                        self._keep_said(cell, loss)
                        self._show.notice(f"{name}: {loss.what} ({short(log_file(self._folder, cell))})")
                    else:
                        self._tell(self._at_work.pop(name), loss)

    def _next(self) -> Cell | None:
        """The cell to start now: the first of those that wait for no other that there is room for.

        If there is room for none, the first of them waits in Ray's queue, where no other does.
        """
        if self._runs.one_waits:
            return None
        first = None
        for cell in self._ready():
            if self._runs.have_room(cell.job):
                return cell
            first = first or cell
        return first

    def _ready(self) -> Iterator[Cell]:
        """The waiting cells that need nothing which a cell at work is making, in order."""
        making = {file for name in self._at_work for file in self._makes[name] if not self._is_there(file)}
        for cell in list(self._waiting):
            if cell.name not in self._makes:
                with noting_failure(self._folder, cell, self._show):
                    self._makes[cell.name] = files_made(cell, self._opened)
            if cell.name not in self._makes:
                self._waiting.remove(cell)
            elif making.isdisjoint(self._makes[cell.name]):
                yield cell

    def _is_there(self, file: str) -> bool:
        """Whether a cell has made the result that this file below its model's folder tells of."""
        if file not in self._there and next((self._folder / CELLS).glob(f"*/*/{file}"), None):
            self._there.add(file)
        return file in self._there

    def _keep_said(self, cell: Cell, loss: Loss) -> None:
        """Keep in the cell's log what Ray says of its loss."""
        path = log_file(self._folder, cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as log:
            log.write(f"Ray: {loss.said}\n")

    def _tell(self, cell: Cell, loss: Loss | None) -> None:
        """Tell how a cell ended; loss: why its task has no result, then noted, if it has none."""
        if self._mirror is not None:
            fetch_cell(self._mirror, cell)
        if loss:
            self._keep_said(cell, loss)
        state = state_of(self._folder, cell)
        if state.status == FINISHED:
            seconds = read_result(run_folder(self._folder, cell) / RECORD)["seconds"]
            left = len(self._waiting) + len(self._at_work)
            self._show.ended(cell.name, f"{duration(seconds)}, {self._all - left} of {self._all}")
            return
        reason = state.reason or (loss.what if loss else "")
        if not state.reason:
            note_failed(self._folder, cell, reason)
        self._show.notice(f"{cell.name} failed: {reason} ({short(log_file(self._folder, cell))})")


def fetch_cell(mirror: Mirror, cell: Cell) -> None:
    """Fetch what a cell has left at the grid's URL for its table, unless it ran on this node."""
    noted = state_file(mirror.folder, cell)
    before = read_json(noted)
    mirror.fetch(noted)
    if read_json(noted) != before or not before or before["status"] != FINISHED:
        mirror.fetch(log_file(mirror.folder, cell))
        mirror.pull(run_folder(mirror.folder, cell), without=[CHECKPOINTS, BOARD])
