"""The commands that write pages again: report, of a run or a grid, and tables, of Markdown pages."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from moe_dist.errors import UserError
from moe_dist.paths import typed
from moe_dist.record.mirror import CHECKPOINTS
from moe_dist.record.run_place import RunPlace, require_run, run_place
from moe_dist.terminal import console, say, say_table, short


def report(
    runs: Annotated[
        list[RunPlace],
        typer.Argument(
            metavar="RUN...", help="A run directory, a folder or URL; or several of one job.", parser=run_place("RUN")
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for seeds.md, the table over several runs. Default: here.",
            parser=typed("--out", "give a folder"),
        ),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Write the record of a grid here: all that its tables need. Cells that it has from elsewhere stay.",
            parser=typed("--record", "name a file"),
        ),
    ] = None,
) -> None:
    """Write the report of a run or a grid again, from what it left; from runs of several seeds, a table of means."""
    for run in runs:
        require_run(run, "RUN")
    with ExitStack() as at_hand:
        mirrors = [at_hand.enter_context(run.at_hand(CHECKPOINTS)) for run in runs]
        write_report([run.folder for run in runs], out, record)
        for run, mirror in zip(runs, mirrors):
            if mirror is not None:
                mirror.push()
                say(console, f"kept at {run}")


def write_report(runs: list[Path], out: Path | None, record: Path | None) -> None:
    """Write the report of a run or a grid, or the table of several runs."""
    from moe_dist.grid.grown import write_record
    from moe_dist.grid.record import is_grid
    from moe_dist.grid.report import build_grid_report
    from moe_dist.plots.tables import to_rich
    from moe_dist.report.build import build_report, build_seeds_table

    if record is not None and (len(runs) > 1 or not is_grid(runs[0])):
        raise UserError(f"--record {record}: is for a grid; give the folder that `moe-dist run` of a grid printed")
    if len(runs) == 1 and out is None and is_grid(runs[0]):
        if record is not None:
            grown = write_record(runs[0], record)
            say(console, f"record: {short(record)}" + (f", cells kept from before: {grown.kept}" if grown.kept else ""))
            for why, cells in grown.dropped.items():
                say(console, ("  ! ", "yellow"), f"dropped from the record, {why}: {', '.join(cells)}")
        say(console, f"report: {short(build_grid_report(runs[0]))}")
    elif len(runs) > 1:
        folder = out or Path()
        say_table(console, to_rich(build_seeds_table(runs, folder)))
        say(console, f"table: {short(folder / 'seeds.md')}")
    elif out is not None:
        raise UserError(f"--out {out}: is for the table over several runs; a single run's report lies in {runs[0]}")
    else:
        say(console, f"report: {short(build_report(runs[0]))}")


def tables(
    pages: Annotated[
        list[Path],
        typer.Argument(metavar="PAGE.md...", help="Markdown pages.", parser=typed("PAGE.md", "download the page")),
    ],
) -> None:
    """Write the tables of Markdown pages again, from the records of grids that their markers name."""
    from moe_dist.grid.pages import write_tables

    for page in pages:
        count = write_tables(page)
        say(console, f"{short(page)}: {count} record{'s' if count != 1 else ''}")
