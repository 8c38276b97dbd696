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
from moe_dist.cli.report import report, tables
from moe_dist.cli.runs import runs
from moe_dist.cli.shards import shards
from moe_dist.cli.use import export, predict, review
from moe_dist.cli.watch import top
from moe_dist.disk import raising_disk_errors
from moe_dist.errors import UserError
from moe_dist.paths import is_url, typed
from moe_dist.record.mirror import CHECKPOINTS
from moe_dist.record.run_place import RunPlace, require_run, run_place
from moe_dist.shipped import job_file, shipped, title
from moe_dist.signals import GO_ON, Stopped, catch_signals, exit_code, stoppable
from moe_dist.terminal import console, errors, plain_facts, say, say_table, short

if TYPE_CHECKING:
    from moe_dist.job import Job


NAME_A_CACHE = {
    "MOE_DIST_CACHE": "name a folder that every node reaches, or a URL",
    "MOE_DIST_NODE_CACHE": "name a folder of the node's own disk",
}
"""What to say of the two settings of caches: what runs share, and what each node keeps."""


class Commands(typer.core.TyperGroup):
    """The group of commands, which ends in one sentence when a signal or a full disk stops it."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. If it is stopped and says nothing better, the sentence is to give it again."""
        again = shlex.join(["moe-dist", *sys.argv[1:]])
        with stoppable(lambda: again), raising_disk_errors(None, "a file", f"give the command again: {again}"):
            for variable, instead in NAME_A_CACHE.items():
                _require_cache(variable, instead)
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


def _require_cache(variable: str, instead: str) -> None:
    """Raise UserError if an environment variable names no place for a cache."""
    place = os.environ.get(variable)
    if place is None or (is_url(place) and variable == "MOE_DIST_CACHE"):
        return
    folder = typed(variable, instead)(place)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{variable} {folder}: is not a folder; {instead}")


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, tune and reproduce image mixtures of experts, on a Ray cluster or on this machine.",
)

OUT = run_place("--out")
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
        RunPlace | None,
        typer.Option(
            metavar="PLACE",
            help="The run directory, a folder or URL (s3://bucket/runs/x). Default: runs/<job>/<time>.",
            parser=OUT,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or the job's newest.")] = False,
    launcher: Annotated[str, typer.Option(help="ray: on Ray; local: in this process, without Ray.")] = "ray",
) -> None:
    """Run a job here: on an embedded Ray, or on the cluster that RAY_ADDRESS names."""
    from moe_dist.launch.choose import require_launcher
    from moe_dist.run.run import choose_run_place

    job = load(job_file, overrides)
    require_launcher(launcher, job)
    place = choose_run_place(job, out, resume)
    drive(job, place, launcher, lambda: again(place.folder, out is not None, resume))


@app.command("resume")
def resume_run(
    run: Annotated[
        RunPlace,
        typer.Argument(
            metavar="RUN_DIR", help="A run directory, a folder or URL, or a grid's.", parser=run_place("RUN_DIR")
        ),
    ],
) -> None:
    """Go on with a run: its job, its settings and its launcher are those that it was begun with."""
    from moe_dist.launch.choose import require_launcher
    from moe_dist.run.begun import begun_with, recorded_launcher
    from moe_dist.run.run import choose_run_place

    require_run(run, "RUN_DIR")
    with run.at_hand(CHECKPOINTS):
        job = begun_with(run.folder)
        launcher = recorded_launcher(run.folder)
    require_launcher(launcher, job)
    place = choose_run_place(job, run, resume=True)
    drive(job, place, launcher, lambda: os.environ.get(GO_ON) or shlex.join(["moe-dist", *sys.argv[1:]]))


def drive(job: Job, place: RunPlace, launcher: str, go_on: Callable[[], str]) -> None:
    """Run a job in its place and print its results. go_on: the command that goes on with it once it is stopped."""
    from moe_dist.launch.choose import require_shared_folders
    from moe_dist.run.run import run_job
    from moe_dist.terminal import Show

    folder, show = place.folder, Show(console)
    say(console, (job.name, "bold"), f" into {place if place.url else short(folder)}")
    with (
        stoppable(go_on),
        raising_disk_errors(folder, "what the run leaves"),
        place.kept(show, grid=job.grid is not None) as mirror,
    ):
        require_shared_folders(launcher, place, show)
        if job.grid is not None:
            from moe_dist.grid.run import run_grid

            page = run_grid(job, folder, launcher, show, mirror)
        else:
            page = run_job(job, folder, launcher, show, mirror=mirror)
    if place.url:
        say(console, f"kept at {place}")
    if job.grid is not None:
        show_grid(folder, page)
        return
    show_results(folder)
    say(console, f"\nreport: {short(page)}\nmetrics: {short(folder / 'metrics.json')}")


def show_results(folder: Path) -> None:
    """Print the tables of the run in `folder`."""
    from moe_dist.plots.tables import to_rich
    from moe_dist.report.build import flat_metrics
    from moe_dist.report.run import RunDirectory
    from moe_dist.report.tables import results_table
    from moe_dist.report.tune import search_tables

    record = RunDirectory(folder)
    say(console)
    for table in [results_table(record, flat_metrics(record)), *search_tables(record)]:
        if table.rows:
            say_table(console, to_rich(table))


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


def again(folder: Path, has_out: bool, resume: bool) -> str:
    """The command line that goes on with the run in `folder`, which this command has begun; has_out: it has --out."""
    if GO_ON in os.environ:
        return os.environ[GO_ON]
    words = ["moe-dist", *sys.argv[1:]]
    if (folder / "job.yaml").exists():  # otherwise nothing has begun that could be gone on with
        words += [] if has_out else ["--out", short(folder)]
        words += [] if resume else ["--resume"]
    return shlex.join(words)


@app.command()
def show(
    job_file: Annotated[Path | None, JobFile.__metadata__[0]] = None,
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[
        Path | None,
        typer.Option(
            help="A grid's run directory. Default: its newest under runs/<job>.", parser=typed("--out", "give a folder")
        ),
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
def submit(
    job_file: JobFile,
    address: Annotated[str, typer.Option(help="The cluster's job server, as http://127.0.0.1:8265.")],
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[
        RunPlace | None,
        typer.Option(
            metavar="PLACE", help="The run directory: a folder that every node reaches, or a URL.", parser=OUT
        ),
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


app.command()(report)
app.command()(tables)
app.command()(doctor)
app.command()(top)
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
