"""The command that looks at machines: doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_dist.paths import FOR_RUNS, typed
from moe_dist.terminal import Show, console, say, say_table


def doctor(
    address: Annotated[
        str | None, typer.Option(help="A cluster's job server, as http://127.0.0.1:8265. Default: this machine alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run directory that is meant.", parser=typed("--out", FOR_RUNS))
    ] = None,
) -> None:
    """Look at this machine, or at every node of a cluster: versions, GPUs, disk, shared folders, clocks, limits.

    The exit code is 1 if anything is wrong.
    """
    from moe_dist.launch.doctor import cluster_nodes, facts_table, findings, this_machine
    from moe_dist.places import RUNS, cache_folder

    show = Show(console)
    if address is None:
        folders = {"--out": str((out or RUNS).absolute()), "cache": str(cache_folder())}
        with show.working("look at this machine"):
            patients = [this_machine(folders)]
    else:
        with show.working("look at this machine and at the nodes"):
            patients = [this_machine({}), *cluster_nodes(address, out)]
    say_table(console, facts_table(patients))
    wrong = findings(patients)
    for sentence in wrong:
        say(console, ("!", "yellow"), f" {sentence}")
    if address is not None and out is None:
        say(console, "no folders were looked at: name the run directory that is meant with --out")
    if wrong:
        raise typer.Exit(1)
    say(console, ("+", "green"), " nothing is wrong")
