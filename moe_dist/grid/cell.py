"""The run of one cell, in whatever process: an ordinary run, and a note of how it ended."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moe_dist.errors import DiskError, UserError
from moe_dist.grid.cells import Cell
from moe_dist.grid.state import log_file, note_begun, note_failed, note_finished, run_folder
from moe_dist.job import parse_job
from moe_dist.launch.choose import RAY_TASK
from moe_dist.places import RECORD
from moe_dist.record.one_driver import wait_until_free
from moe_dist.report.run import read_result
from moe_dist.run.run import run_job
from moe_dist.signals import stopping
from moe_dist.terminal import Show, log_console, say

LOST_SECONDS = 60.0
"""How long a process that Ray has given up, with its node, may go on before it sees that it is alone."""


def run_cell(folder: Path, cell: Cell, launcher_name: str, show: Show) -> None:
    """Run a cell of the grid in `folder`, and note how that ended."""
    note_begun(folder, cell)
    with noting_failure(folder, cell, show):
        run_job(cell.job, run_folder(folder, cell), launcher_name, show, shares=True)
        note_finished(folder, cell, read_result(run_folder(folder, cell) / RECORD)["digests"])


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


def packed(folder: Path, cell: Cell, cache: str) -> dict[str, Any]:
    """A cell as JSON values, to be sent to the task that runs it. cache: the folder or URL of what the runs share."""
    about = {"folder": str(folder), "cache": cache, "at": dict(cell.at)}
    return about | {"job": cell.job.model_dump(mode="json"), "command": sys.argv}


def run_packed(about: Mapping[str, Any]) -> None:
    """Run a packed cell in a task of Ray. What it prints goes to the cell's log."""
    folder, cell = Path(about["folder"]), Cell(about["at"], parse_job(about["job"], "cell"))
    os.environ["MOE_DIST_CACHE"] = about["cache"]  # of the driver, whose current directory a node may not have
    sys.argv = list(about["command"])  # which a run records as the command that began it
    wait_until_free(run_folder(folder, cell), LOST_SECONDS)
    log_file(folder, cell).parent.mkdir(parents=True, exist_ok=True)
    with log_file(folder, cell).open("a", encoding="utf-8", buffering=1) as log:
        run_cell(folder, cell, RAY_TASK, Show(log_console(log)))
