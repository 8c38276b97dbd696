"""The commands on a cluster's jobs: jobs list, logs, status, stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from moe_dist.signals import exit_code
from moe_dist.terminal import console, plain_facts, say, say_table

if TYPE_CHECKING:
    from moe_dist.launch.jobs import ClusterJob

jobs = typer.Typer(help="List, follow and stop the jobs of a cluster.", no_args_is_help=True)

Address = Annotated[str, typer.Option(help="The cluster's job server, as http://127.0.0.1:8265.")]
Submission = Annotated[str, typer.Argument(metavar="JOB_ID", help="As `moe-dist submit` and `jobs list` print it.")]


@jobs.command("list")
def list_jobs(address: Address) -> None:
    """List the jobs that were submitted since the cluster was started, the newest first."""
    from moe_dist.launch.job_server import connect
    from moe_dist.launch.jobs import jobs_of, jobs_table

    found = jobs_of(connect(address))
    if not found:
        say(console, f"{address}: no job was submitted since the cluster was started")
        return
    say_table(console, jobs_table(found))


@jobs.command()
def logs(
    submission: Submission,
    address: Address,
    follow: Annotated[
        bool, typer.Option("--follow", help="Go on until the job ends, and return its exit code.")
    ] = False,
) -> None:
    """Print a job's log: what it has printed so far."""
    job = _job(address, submission)
    if not follow:
        print(job.log(), end="")
        return
    try:
        raise typer.Exit(job.follow())
    except KeyboardInterrupt:
        say(console, f"\nthe job goes on\n{job.commands()}")
        raise typer.Exit(exit_code()) from None


@jobs.command()
def status(
    submission: Submission,
    address: Address,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the job has ended.")] = False,
) -> None:
    """Tell how a job stands. The exit code is 0 while it waits or runs, and then that of the job."""
    from moe_dist.launch.jobs import exit_code_of, facts_of

    job = _job(address, submission)
    if wait:
        job.wait()
    say_table(console, plain_facts(facts_of(job)))
    raise typer.Exit(exit_code_of(job.details()))


@jobs.command()
def stop(submission: Submission, address: Address) -> None:
    """Stop a job: it gets SIGTERM, and its run directory stays, to be gone on with."""
    from moe_dist.launch.jobs import ENDED, RESUME

    job = _job(address, submission)
    if (before := job.details().status.value) in ENDED:
        say(console, f"{submission} had ended before: {before.lower()}")
        return
    details = job.stop()
    say(console, f"{submission}: {details.status.value.lower()}")
    if go_on := (details.metadata or {}).get(RESUME):
        say(console, f"  go on with it: {go_on}")


def _job(address: str, submission: str) -> ClusterJob:
    """The job of the cluster at `address`. Raises UserError where there is none."""
    from moe_dist.launch.job_server import connect
    from moe_dist.launch.jobs import ClusterJob

    job = ClusterJob(connect(address), submission)
    job.details()
    return job
