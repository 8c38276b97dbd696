"""One run of a grid: its cells, each an ordinary run, then the table of all of them.

With Ray, cells run beside each other (beside.py), by the local launcher one after another.

<grid>/job.yaml, lock, results.md, results.csv, results.tex, report.html
<grid>/cells/<cell>/        the run directory of a cell
<grid>/cells/<cell>.json    how its run ended, and with which settings and images
<grid>/cells/<cell>.log     what it printed, where it ran beside others
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from moe_dist.grid.beside import run_beside
from moe_dist.grid.cell import noting_failure, run_cell
from moe_dist.grid.cells import Cell, cells_of
from moe_dist.grid.opened import Opened, files_made, is_done
from moe_dist.grid.paper import papers_of
from moe_dist.grid.report import build_grid_report
from moe_dist.job import Job
from moe_dist.record.mirror import Mirror
from moe_dist.record.one_driver import only_driver
from moe_dist.report.paper import paper_table
from moe_dist.run.run import claim_run_directory, require_same_run
from moe_dist.terminal import Show


def run_grid(job: Job, folder: Path, launcher_name: str, show: Show, mirror: Mirror | None = None) -> Path:
    """Run the cells of a grid that are not finished, into `folder`, and return the grid's report.html.

    mirror: what keeps the grid at a URL, if anything does; then each cell is a run at a URL below it. A cell that fails
    stops no other one; the report shows its reason. A cell whose settings or images have changed is run again, and
    keeps the results that do not depend on them.
    """
    cells = cells_of(job)
    require_same_run(folder, job)
    for paper in papers_of(job):
        if paper.table:
            paper_table(paper.table, paper.column)  # refuses a table there is not
    with only_driver(folder, show):
        claim_run_directory(folder, job)
        if launcher_name == "ray":
            run_beside(cells, folder, show, mirror)
        else:
            _run_in_turn(cells, folder, launcher_name, show, mirror)
        with show.working("report of the grid"):
            return build_grid_report(folder)


def _run_in_turn(cells: Sequence[Cell], folder: Path, launcher_name: str, show: Show, mirror: Mirror | None) -> None:
    """Run the cells that are not finished one after another, in this process."""
    opened = Opened(show)
    for number, cell in enumerate(cells, 1):
        show.headline(f"{cell.name} ({number} of {len(cells)})")
        if not is_done(folder, cell, opened, show):
            with noting_failure(folder, cell, show):
                url, makes = (mirror.url, files_made(cell, opened)) if mirror else (None, [])
                run_cell(folder, cell, launcher_name, show, url, makes)
