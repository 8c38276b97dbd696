"""Finds the runs below a URL: what a line tells of each is fetched, and nothing else."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from moe_dist.data.storage.store import Stored, get_file, join, shown, stored_files
from moe_dist.history.found import JOB_FILE, METRICS, find_runs, runs_table
from moe_dist.places import RECORD
from moe_dist.plots.tables import Table

TOLD = (JOB_FILE, RECORD, METRICS)
"""The files of a run directory that its line is made of."""


def stored_runs_table(url: str) -> Table | None:
    """The runs below a URL, one a row, as `runs_table` has them; None without any. Raises UserError."""
    found = stored_files(url)
    with tempfile.TemporaryDirectory(prefix="moe-dist-runs-") as name:
        folder = Path(name)
        for file in found:
            if file.rpartition("/")[2] in TOLD and "checkpoints/" not in file:
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                get_file(join(url, *file.split("/")), folder / file)
        runs = [
            replace(run, size=_size_below(found, run.path.relative_to(folder).as_posix())) for run in find_runs(folder)
        ]
        if not runs:
            return None
        return replace(runs_table(folder, runs), title=f"Runs in {shown(url)}")


def stored_size(url: str) -> int:
    """The bytes of all files below a URL. Raises UserError."""
    return _size_below(stored_files(url), ".")


def _size_below(files: dict[str, Stored], name: str) -> int:
    return sum(stored.size for file, stored in files.items() if name == "." or file.startswith(f"{name}/"))
