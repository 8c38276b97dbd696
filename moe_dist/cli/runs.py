"""The commands on what runs left: runs list, show, compare, clean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_dist.errors import UserError
from moe_dist.paths import FOR_RUNS, typed
from moe_dist.places import RUNS
from moe_dist.record.mirror import CHECKPOINTS
from moe_dist.record.run_place import RunPlace, require_run, run_place
from moe_dist.terminal import Show, console, errors, plain_facts, say, say_table, short

runs = typer.Typer(help="List, show, compare and clean what runs left.", no_args_is_help=True)

Folder = Annotated[
    Path, typer.Argument(metavar="[FOLDER]", help="The folder that runs lie in.", parser=typed("FOLDER", FOR_RUNS))
]


@runs.command("list")
def list_runs(
    place: Annotated[
        RunPlace | None,
        typer.Argument(metavar="[FOLDER|URL]", help="What the runs lie in. Default: runs.", parser=run_place("FOLDER")),
    ] = None,
) -> None:
    """List the runs below a folder or URL: when they were begun, how they stand, their figures and sizes."""
    from moe_dist.history.found import find_runs, runs_table
    from moe_dist.history.stored import stored_runs_table
    from moe_dist.plots.tables import to_rich

    place = place or RunPlace(RUNS)
    if place.url is None:
        found = list(find_runs(_folder(place.folder)))
        table = runs_table(place.folder, found) if found else None
    else:
        table = stored_runs_table(place.url)
    if table is None:
        raise UserError(f"{place}: no runs lie here; `moe-dist run JOB` leaves them in runs/")
    say_table(console, to_rich(table))


@runs.command("show")
def show_run(
    place: Annotated[RunPlace, typer.Argument(metavar="RUN_DIR", help="A folder or URL.", parser=run_place("RUN_DIR"))],
) -> None:
    """Show a run: its command, state, data and hardware, and its table of results."""
    from moe_dist.grid.record import is_grid, record_of
    from moe_dist.grid.tables import result_tables
    from moe_dist.history.found import in_words, size_of
    from moe_dist.history.stored import stored_size
    from moe_dist.plots.tables import to_rich
    from moe_dist.report.build import flat_metrics
    from moe_dist.report.run import RunDirectory
    from moe_dist.report.tables import results_table

    require_run(place, "RUN_DIR")
    run = place.fetched(CHECKPOINTS)
    if is_grid(run):
        for table in result_tables(record_of(run)):
            say_table(console, to_rich(table))
        return
    found = RunDirectory(run)
    facts = {
        "command": found.record["command"],
        "state": found.status,
        "begun": found.record["started"].replace("T", " "),
        "data": found.test_split,
        "hardware": found.hardware,
        "code": found.record.get("code", "not recorded"),
        "size": in_words(size_of(run) if place.url is None else stored_size(place.url)),
        "report": short(run / "report.html"),
    }
    say_table(console, plain_facts(facts))
    table = results_table(found, flat_metrics(found))
    if table.rows:
        say_table(console, to_rich(table))


@runs.command()
def compare(
    places: Annotated[
        list[RunPlace], typer.Argument(metavar="RUN_DIR...", help="Folders or URLs.", parser=run_place("RUN_DIR"))
    ],
) -> None:
    """Compare runs: the settings in which they differ, beside their results."""
    from moe_dist.history.compare import compare_runs
    from moe_dist.plots.tables import to_rich

    for place in places:
        require_run(place, "RUN_DIR")
    for table in compare_runs([place.fetched(CHECKPOINTS) for place in places]):
        say_table(console, to_rich(table))


@runs.command()
def clean(
    folder: Folder = RUNS,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Runs that failed, were stopped or killed, too: as a whole.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Remove without asking.")] = False,
) -> None:
    """Say what may be removed of the runs below a folder, ask, and remove it: results of settings that a run has no
    longer."""
    from moe_dist.history.clean import removable, remove
    from moe_dist.history.found import find_runs, in_words

    what = list(removable(list(find_runs(_folder(folder))), unfinished))
    if not what:
        also = "" if unfinished else "; --unfinished looks for runs that failed, were stopped or killed"
        say(console, f"{short(folder)}: no result is superseded{also}")
        return
    for each in what:
        say(console, f"{short(each.path)}: {in_words(each.size)}, {each.why}")
    if not yes and not typer.confirm(f"remove {in_words(sum(each.size for each in what))}?"):
        say(console, "nothing is removed")
        return
    for each in what:
        try:
            remove(each, Show(console))
        except UserError as busy:
            say(errors, ("left:", "yellow"), f" {busy}")


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that runs lie in")
    return folder
