"""The run of one cell, in whatever process: an ordinary run, and a note of how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_dist.data.storage.store import join, stored_files
from moe_dist.errors import DiskError, UserError
from moe_dist.grid.cells import Cell
from moe_dist.grid.state import log_file, note_begun, note_failed, note_finished, run_folder, state_file
from moe_dist.job import parse_job
from moe_dist.launch.choose import RAY_TASK
from moe_dist.places import RECORD, cache_folder
from moe_dist.record.mirror import CELLS, PATIENT, Mirror, working_folder
from moe_dist.record.one_driver import wait_until_free
from moe_dist.record.run_place import RunPlace
from moe_dist.record.sharing import is_at_hand
from moe_dist.report.run import read_result
from moe_dist.run.run import run_job
from moe_dist.signals import stopping
from moe_dist.terminal import Show, log_console, say

LOST_SECONDS = 60.0
"""How long a process that Ray has given up, with its node, may go on before it sees that it is alone."""


def run_cell(
    folder: Path,
    cell: Cell,
    launcher_name: str,
    show: Show,
    url: str | None = None,
    makes: Sequence[str] = (),
) -> None:
    """Run a cell of the grid in `folder`, and note how that ended.

    url: where the grid is kept, if its nodes need not share the folder. makes: the results that the cell would make
    (opened.py: files_made); what another cell has made is fetched from there.
    """
    run = run_folder(folder, cell)
    with keeping_notes(folder, cell, url, show):
        note_begun(folder, cell)
        with noting_failure(folder, cell, show):
            if url is not None:
                fetch_results(folder / CELLS, join(url, CELLS), makes)
            with RunPlace(run, url and join(url, CELLS, cell.name)).kept(show) as mirror:
                run_job(cell.job, run, launcher_name, show, shares=True, mirror=mirror)
            note_finished(folder, cell, read_result(run / RECORD)["digests"])


@contextmanager
def keeping_notes(folder: Path, cell: Cell, url: str | None, show: Show) -> Iterator[None]:
    """Keep what the grid's folder says of a cell at the grid's URL while the block runs; nothing without a URL."""
    if url is None:
        yield
        return
    notes = {path.relative_to(folder).as_posix() for path in (state_file(folder, cell), log_file(folder, cell))}
    with Mirror(folder, url, notes.__contains__).keeping(show.notice):
        yield


def fetch_results(cells: Path, url: str, makes: Sequence[str]) -> None:
    """Fetch those results into the folder `cells` that a cell at the URL has and none here."""
    missing = {file for file in makes if not any(map(is_at_hand, cells.glob(f"*/*/{file}")))}
    mirror = Mirror(cells, url)
    for name in stored_files(url, PATIENT) if missing else ():
        file = "/".join(name.split("/")[2:])  # below the folders of cell and model
        if file in missing:
            done = cells / name
            mirror.pull(done.parent, without=[done.name])
            mirror.fetch(done)  # last: it says that the others are there
            missing.remove(file)


@contextmanager
def noting_failure(folder: Path, cell: Cell, show: Show) -> Iterator[None]:
    """Note and show why the block failed, which is a part of the cell's run. A full disk is no failure of the cell."""
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        if stopping():  # a library may have turned the signal's KeyboardInterrupt into an error of its own
            raise
        reason = " ".join(str(error).split())
        if not isinstance(error, UserError):
            say(show.console, traceback.format_exc())
            reason = f"{type(error).__name__}: {reason}"
        note_failed(folder, cell, reason)
        show.notice(f"{cell.name} failed: {reason}")


def packed(folder: Path, cell: Cell, cache: str, url: str | None, makes: Sequence[str]) -> dict[str, Any]:
    """A cell as JSON values, to be sent to the task that runs it.

    cache: the folder or URL of what the runs share. url, makes: see run_cell.
    """
    about = {"folder": str(folder), "cache": cache, "url": url, "makes": list(makes), "at": dict(cell.at)}
    return about | {"job": cell.job.model_dump(mode="json"), "command": sys.argv}


def run_packed(about: Mapping[str, Any]) -> None:
    """Run a packed cell in a task of Ray. What it prints goes to the cell's log."""
    os.environ["MOE_DIST_CACHE"] = about["cache"]  # of the driver, whose current directory a node may not have
    url, cell = about["url"], Cell(about["at"], parse_job(about["job"], "cell"))
    folder = Path(about["folder"]) if url is None else working_folder(url, cache_folder())
    sys.argv = list(about["command"])  # which a run records as the command that began it
    wait_until_free(run_folder(folder, cell), LOST_SECONDS)
    log_file(folder, cell).parent.mkdir(parents=True, exist_ok=True)
    with log_file(folder, cell).open("a", encoding="utf-8", buffering=1) as log:
        run_cell(folder, cell, RAY_TASK, Show(log_console(log)), url, about["makes"])
