"""The command that watches a run: top."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moe_dist.paths import FOR_RUNS, typed
from moe_dist.terminal import console, redraw, say_table


def top(
    run: Annotated[
        Path, typer.Argument(metavar="RUN_DIR", help="The run directory.", parser=typed("RUN_DIR", FOR_RUNS))
    ],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look once, print and leave; for scripts and logs.")] = False,
) -> None:
    """Watch a run: its steps, images a second, experts' load, checkpoints and restarts. Ctrl-C leaves it running."""
    from moe_dist.history.top import run_now, screen
    from moe_dist.places import RUNNING

    now = run_now(run)
    if not once and console.is_terminal:
        redraw(console, lambda: screen(current) if (current := run_now(run)).status == RUNNING else None, every)
        now = run_now(run)
    say_table(console, screen(now))
