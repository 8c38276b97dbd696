"""One run of a grid: its cells one after another, each an ordinary run, then the table of all of them.

<grid>/job.yaml, lock, results.md, results.csv, results.tex, report.html
<grid>/cells/<cell>/        the run directory of a cell
<grid>/cells/<cell>.json    how its run ended, and with which settings and images
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import open_data
from moe_dist.errors import DiskError, UserError
from moe_dist.grid.cells import Cell, cells_of, grid_of
from moe_dist.grid.report import build_grid_report
from moe_dist.grid.state import note_begun, note_failed, note_finished, run_folder, state_of
from moe_dist.job import Job
from moe_dist.places import FINISHED, RECORD, cache_folder, shared_cache
from moe_dist.record.one_driver import only_driver
from moe_dist.report.paper import paper_table
from moe_dist.report.run import read_result
from moe_dist.run.run import claim_run_directory, require_same_run, run_job
from moe_dist.signals import stopping
from moe_dist.terminal import Show, say


def run_grid(job: Job, folder: Path, launcher_name: str, show: Show) -> Path:
    """Run the cells of a grid that are not finished, into `folder`, and return the grid's report.html.

    A cell that fails stops no other one; the report shows its reason. A cell whose settings or images have changed is
    run again, and keeps the results that do not depend on them.
    """
    cells = cells_of(job)
    require_same_run(folder, job)
    for key in [job.paper_table, *(paper.table for paper in grid_of(job).paper)]:
        if key:
            paper_table(key)  # refuses a table there is not
    with only_driver(folder, show):
        claim_run_directory(folder, job)
        opened = OpenedDigests(show)
        for number, cell in enumerate(cells, 1):
            show.headline(f"{cell.name} ({number} of {len(cells)})")
            _run_cell(folder, cell, launcher_name, opened, show)
        with show.working("report of the grid"):
            return build_grid_report(folder)


def _run_cell(folder: Path, cell: Cell, launcher_name: str, opened: OpenedDigests, show: Show) -> None:
    """Run a cell unless it is finished, and note how that ended."""
    run, state = run_folder(folder, cell), state_of(folder, cell)
    if state.changed:
        show.notice(f"{cell.name}: other settings than before ({'; '.join(state.changed)})")
    try:
        if state.status == FINISHED:
            if state.digests == opened.digests(cell.job):
                show.skipped("finished", read_result(run / RECORD)["seconds"])
                return
            show.notice(f"{cell.name}: other images than before")
        note_begun(folder, cell)
        run_job(cell.job, run, launcher_name, show, shares=True)
        note_finished(folder, cell, read_result(run / RECORD)["digests"])
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


class OpenedDigests:
    """The digests of the images that jobs ask for, each set of images opened once."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._found: dict[tuple[str, int], Mapping[str, str]] = {}

    def digests(self, job: Job) -> Mapping[str, str]:
        """The digests of the job's training, validation and test images."""
        key = (job.data.model_dump_json(), job.seed)
        if key not in self._found:
            with self._show.working("data"):
                place = ensure_shards(job.data, shared_cache(), self._show.shards)
                self._found[key] = dict(open_data(job.data, job.seed, cache_folder(), place).digests)
        return self._found[key]
