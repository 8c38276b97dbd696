"""The `moe-dist` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from moe_dist import __version__
from moe_dist.errors import UserError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train, tune and reproduce image mixtures of experts, on a Ray cluster or on this machine.",
)

JobFile = Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The job, a YAML file as under jobs/.")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="a.b=c", help="Change a field of the job, or all that a file says: @FILE; repeat it."
    ),
]
console = Console(highlight=False)


@app.callback()
def options(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """What goes before the command's name."""
    context.obj = {"debug": debug}
    if version:
        console.print(__version__)
        raise typer.Exit


@app.command()
def run(
    job_file: JobFile,
    overrides: Overrides = [],  # noqa: B006 - typer reads the default, nobody changes it
    out: Annotated[Path | None, typer.Option(help="The run directory. Default: runs/<job>/<time>.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out, or the job's newest.")] = False,
    launcher: Annotated[str, typer.Option(help="ray: on Ray; local: in this process, without Ray.")] = "ray",
) -> None:
    """Run a job here: on an embedded Ray, or on the cluster that RAY_ADDRESS names."""
    from moe_dist.config import load_job
    from moe_dist.report.build import flat_metrics
    from moe_dist.report.render import to_rich
    from moe_dist.report.run import RunDirectory
    from moe_dist.report.tables import results_table
    from moe_dist.train.run import choose_run_directory, run_job
    from moe_dist.train.show import Show

    job = load_job(job_file, overrides)
    folder = choose_run_directory(job, out, resume)
    console.print(f"[bold]{job.name}[/] into {_short(folder)}")
    page = run_job(job, folder, launcher, Show(console))
    record = RunDirectory(folder)
    console.print()
    console.print(to_rich(results_table(record, flat_metrics(record))))
    console.print(f"\nreport: {_short(page)}\nmetrics: {_short(folder / 'metrics.json')}")


@app.command()
def report(run_directory: Annotated[Path, typer.Argument(help="A run directory.")]) -> None:
    """Write the report of a run again, from what the run left."""
    from moe_dist.report.build import build_report

    console.print(f"report: {_short(build_report(run_directory))}")


@app.command()
def show(job_file: JobFile, overrides: Overrides = []) -> None:  # noqa: B006
    """Show a job resolved: every setting, sizes, placement of experts and an estimate. Runs nothing."""
    from moe_dist.config import load_job
    from moe_dist.train.preview import preview

    preview(load_job(job_file, overrides), console)


@app.command()
def submit(
    job_file: JobFile,
    address: Annotated[str, typer.Option(help="The cluster's job server, as http://127.0.0.1:8265.")],
    overrides: Overrides = [],  # noqa: B006
    out: Annotated[Path | None, typer.Option(help="The run directory, on storage that every node reaches.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Follow the job's log and return its exit code.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
) -> None:
    """Run a job on a cluster: ship this directory to it by Ray's job submission."""
    from moe_dist.train.submit import submit as submit_job

    raise typer.Exit(submit_job(job_file, overrides, address, follow=follow, out=out, resume=resume))


class BuildByDefault(typer.core.TyperGroup):
    """`shards SOURCE OUT` builds; `shards check DIR` and other named commands do what they say."""

    def resolve_command(self, context: Any, args: list[str]) -> Any:
        """The named command, or `build` when the first word names none."""
        return super().resolve_command(context, args if args[0] in self.commands else ["build", *args])


shards = typer.Typer(cls=BuildByDefault, no_args_is_help=True, help="Build, check and list shards of a dataset.")
app.add_typer(shards, name="shards")


@shards.command("build")
def shards_build(
    dataset: Annotated[str, typer.Argument(metavar="SOURCE", help="A dataset of the catalogue.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder that gets train/ and test/.")],
    source: Annotated[Path | None, typer.Option("--from", help="The downloaded dataset: a folder or a tar.")] = None,
) -> None:
    """Build the shards of a dataset."""
    from moe_dist.data.shards import build_shards
    from moe_dist.train.show import Show

    shower = Show(console)
    with shower.working(f"shards of {dataset}"):
        build_shards(dataset, source, out, on_progress=shower.shards)
    console.print(f"shards: {_short(out.absolute())}")


@shards.command("list")
def shards_list() -> None:
    """The datasets a job can name: what they are, where to get them, what is read."""
    from rich.table import Table

    from moe_dist.data.catalog import DATASETS

    table = Table("dataset", "what", "images", "where to get it", "what is read", show_lines=True)
    for entry in DATASETS.values():
        counts = ", ".join(f"{count:,} {split}" for split, count in entry.expected.items())
        table.add_row(entry.name, f"{entry.title}; {entry.licence}", counts or "any", entry.where, entry.reads)
    console.print(table)


@shards.command("check")
def shards_check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of shards with an index.")],
) -> None:
    """Read every shard and say what is wrong where."""
    from moe_dist.data.check import check_shards

    folders = [part for part in (folder / "train", folder / "val", folder / "test") if part.is_dir()] or [folder]
    problems = [problem for part in folders for problem in check_shards(part)]
    for problem in problems:
        console.print(problem, markup=False)
    console.print(f"{_short(folder.absolute())}: {f'{len(problems)} problems' if problems else 'all shards are whole'}")
    raise typer.Exit(1 if problems else 0)


def _short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def main() -> None:
    """Run the command; an error a user can mend is one sentence, any other keeps its traceback."""
    try:
        app()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        Console(stderr=True, highlight=False).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
