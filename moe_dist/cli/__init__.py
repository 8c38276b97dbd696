"""The `moe-dist` command."""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from moe_dist import __version__
from moe_dist.cli.doctor import doctor
from moe_dist.cli.jobs import jobs
from moe_dist.cli.runs import runs
from moe_dist.cli.shards import shards
from moe_dist.cli.use import export, predict, review
from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.paths import FOR_RUNS, typed
from moe_dist.shipped import job_file, shipped, title
from moe_dist.signals import GO_ON, Stopped, catch_signals, exit_code, stoppable
from moe_dist.terminal import console, errors, plain_facts, say, say_table, short

if TYPE_CHECKING:
    from moe_dist.job import Job


NAME_A_CACHE = "name a folder (on a cluster, one that every node reaches)"


class Commands(typer.core.TyperGroup):
    """The group of commands, which ends in one sentence when a signal or a full disk stops it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. If it is stopped and says nothing better, the sentence is to give it again."""
        again = shlex.join(["moe-dist", *sys.argv[1:]])
        with stoppable(lambda: again), raising_disk_errors(None, "a file", f"give the command again: {again}"):
            if "MOE_DIST_CACHE" in os.environ:
                cache = typed("MOE_DIST_CACHE", NAME_A_CACHE)(os.environ["MOE_DIST_CACHE"])
                if cache.exists() and not cache.is_dir():
                    raise UserError(f"MOE_DIST_CACHE {cache}: is not a folder; {NAME_A_CACHE}")
            try:
                return super().invoke(ctx)
            except (PermissionError, NotADirectoryError, IsADirectoryError) as error:
                if error.filename is None:
                    raise
                mend = "choose another place, or change who may use it"
                raise UserError(f"{error.filename}: {error.strerror}; {mend}") from error
            except typer.Exit as end:  # an exit code, also after a signal that the command has dealt with
                ended = end
        raise ended


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, tune and reproduce image mixtures of experts, on a Ray cluster or on this machine.",
)

RUN_FOLDER = typed("--out", FOR_RUNS)
JobFile = Annotated[
    Path,
    typer.Argument(
        metavar="JOB",
        help="The job: a YAML file, or the name of one that comes with the package (`moe-dist show` lists them).",
        parser=job_file,
    ),
]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="a.b=c", help="Change a field of the job, or all that a file says: @FILE; repeat it."
    ),
]


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """Handle the options before the command's name."""
    context.obj = {"debug": debug}
    if version:
        say(console, __version__)
        raise typer.Exit


@app.command()
def run(
    job_file: JobFile,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    out: Annotated[
        Path | None, typer.Option(help="The run directory. Default: runs/<job>/<time>.", parser=RUN_FOLDER)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or the job's newest.")] = False,
    launcher: Annotated[str, typer.Option(help="ray: on Ray; local: in this process, without Ray.")] = "ray",
) -> None:
    """Run a job here: on an embedded Ray, or on the cluster that RAY_ADDRESS names."""
    from moe_dist.launch.choose import require_launcher
    from moe_dist.run.run import choose_run_directory

    job = load(job_file, overrides)
    require_launcher(launcher)
    folder = choose_run_directory(job, out, resume)
    drive(job, folder, launcher, lambda: again(folder, out, resume))


@app.command("resume")
def resume_run(
    folder: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="A run directory, or a grid's.", parser=typed("RUN_DIR", FOR_RUNS))
    ],
) -> None:
    """Go on with a run: its job, its settings and its launcher are those that it was begun with."""
    from moe_dist.launch.choose import require_launcher
    from moe_dist.run.begun import begun_with, recorded_launcher
    from moe_dist.run.run import choose_run_directory

    job = begun_with(folder)
    launcher = recorded_launcher(folder)
    require_launcher(launcher)
    folder = choose_run_directory(job, folder, resume=True)
    drive(job, folder, launcher, lambda: os.environ.get(GO_ON) or shlex.join(["moe-dist", *sys.argv[1:]]))


def drive(job: Job, folder: Path, launcher: str, go_on: Callable[[], str]) -> None:
    """Run a job in its folder and print its results. go_on: the command that goes on with it once it is stopped."""
    from moe_dist.launch.choose import require_shared_folders
    from moe_dist.plots.tables import to_rich
    from moe_dist.report.build import flat_metrics
    from moe_dist.report.run import RunDirectory
    from moe_dist.report.tables import results_table
    from moe_dist.report.tune import search_tables
    from moe_dist.run.run import run_job
    from moe_dist.terminal import Show

    say(console, (job.name, "bold"), f" into {short(folder)}")
    with stoppable(go_on), raising_disk_errors(folder, "what the run leaves"):
        require_shared_folders(launcher, folder, Show(console))
        if job.grid is not None:
            from moe_dist.grid.run import run_grid

            page = run_grid(job, folder, launcher, Show(console))
        else:
            page = run_job(job, folder, launcher, Show(console))
    if job.grid is not None:
        show_grid(folder, page)
        return
    record = RunDirectory(folder)
    say(console)
    for table in [results_table(record, flat_metrics(record)), *search_tables(record)]:
        if table.rows:
            say_table(console, to_rich(table))
    say(console, f"\nreport: {short(page)}\nmetrics: {short(folder / 'metrics.json')}")


def load(job_file: Path, overrides: list[str]) -> Job:
    """The job, whose cells load as well if it is a grid."""
    from moe_dist.grid.cells import cells_of
    from moe_dist.job import load_job

    job = load_job(job_file, overrides)
    if job.grid is not None:
        cells_of(job)
    return job


def show_grid(folder: Path, page: Path) -> None:
    """Print the tables of the grid in `folder`. Raises UserError where cells failed."""
    from moe_dist.grid.record import record_of
    from moe_dist.grid.tables import result_tables
    from moe_dist.plots.tables import to_rich

    record = record_of(folder)
    say(console)
    for table in result_tables(record):
        say_table(console, to_rich(replace(table, notes=())))  # as a caption, notes would be as narrow as the table
        for note in table.notes:
            say(console, f"- {note}")
    say(console, f"\nreport: {short(page)}\ntables: {short(folder)}/results.md, .csv, .tex")
    if failed := sum("reason" in cell for cell in record["cells"]):
        raise UserError(
            f"{failed} of {len(record['cells'])} cells failed, as the notes of the table say; --resume runs them again"
        )


def again(folder: Path, out: Path | None, resume: bool) -> str:
    """The command line that goes on with the run in `folder`, which this command has begun."""
    if GO_ON in os.environ:
        return os.environ[GO_ON]
    words = ["moe-dist", *sys.argv[1:]]
    if (folder / "job.yaml").exists():  # otherwise nothing has begun that could be gone on with
        words += [] if out else ["--out", short(folder)]
        words += [] if resume else ["--resume"]
    return shlex.join(words)


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="A run directory; or several of one job.", parser=typed("RUN", FOR_RUNS)),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for seeds.md, the table over several runs. Default: here.", parser=RUN_FOLDER),
    ] = None,
    record: Annotated[
        Path | None,
        typer.Option(
            help="Write the record of a grid here: all that its tables need.", parser=typed("--record", "name a file")
        ),
    ] = None,
) -> None:
    """Write the report of a run or a grid again, from what it left; from runs of several seeds, a table of means."""
    from moe_dist.grid.record import is_grid
    from moe_dist.grid.report import build_grid_report
    from moe_dist.plots.tables import to_rich
    from moe_dist.report.build import build_report, build_seeds_table

    if record is not None and (len(runs) > 1 or not is_grid(runs[0])):
        raise UserError(f"--record {record}: is for a grid; give the folder that `moe-dist run` of a grid printed")
    if len(runs) == 1 and out is None and is_grid(runs[0]):
        say(console, f"report: {short(build_grid_report(runs[0], record))}")
        if record is not None:
            say(console, f"record: {short(record)}")
    elif len(runs) > 1:
        folder = out or Path()
        say_table(console, to_rich(build_seeds_table(runs, folder)))
        say(console, f"table: {short(folder / 'seeds.md')}")
    elif out is not None:
        raise UserError(f"--out {out}: is for the table over several runs; a single run's report lies in {runs[0]}")
    else:
        say(console, f"report: {short(build_report(runs[0]))}")


@app.command()
def show(
    job_file: Annotated[Path | None, JobFile.__metadata__[0]] = None,
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(help="A grid's run directory. Default: its newest under runs/<job>.", parser=RUN_FOLDER),
    ] = None,
) -> None:
    """Show a job resolved: every setting, sizes, placement of experts and an estimate; of a grid, its cells and which
    are done. Without a job: list those that come with the package. Runs nothing."""
    from moe_dist.grid.preview import preview_grid
    from moe_dist.places import RUNS
    from moe_dist.run.preview import preview

    if job_file is None:
        list_jobs()
        return
    job = load(job_file, overrides)
    if job.grid is not None:
        preview_grid(job, out or RUNS / job.name / "latest", console)
    elif out is not None:
        raise UserError(f"--out {out}: is for a grid, whose cells may be done there; {job.name} is none")
    else:
        preview(job, console)


def list_jobs() -> None:
    """List the jobs that come with the package, with what each is for."""
    say_table(console, plain_facts({name: title(path) for name, path in shipped().items()}))
    say(console, "\nmoe-dist run NAME --set FIELD=VALUE; each file begins with what its data is and how it is run")


@app.command()
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


@app.command()
def submit(
    job_file: JobFile,
    address: Annotated[str, typer.Option(help="The cluster's job server, as http://127.0.0.1:8265.")],
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[
        Path | None, typer.Option(help="The run directory, on storage that every node reaches.", parser=RUN_FOLDER)
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the job's log and return its exit code.")] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for the job's end, without its log, and return its exit code.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Run a job on a cluster: ship this directory to it by Ray's job submission."""
    from moe_dist.launch.submit import submit as submit_job

    load(job_file, overrides)
    raise typer.Exit(submit_job(job_file, overrides, address, follow=follow, wait=wait, out=out, resume=resume))


app.command()(doctor)
app.command()(predict)
app.command()(export)
app.command()(review)
app.add_typer(jobs, name="jobs")
app.add_typer(shards, name="shards")
app.add_typer(runs, name="runs")


def main() -> None:
    """Run the command. A stop, and an error that the user can mend, are one sentence; a bug keeps its traceback."""
    catch_signals()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not have what a name is written in
    try:
        app()
    except Stopped as stopped:
        say(errors, str(stopped))
        sys.exit(exit_code())
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        say(errors, ("error:", "red"), f" {error}")
        sys.exit(2)


if __name__ == "__main__":
    main()
