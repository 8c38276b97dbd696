"""Finds the run directories below a folder, and says in a line what each holds. torch is not imported."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from moe_dist.files import read_json
from moe_dist.places import FINISHED, RECORD, status_of
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.report.tables import SECTIONS

JOB_FILE, CELLS, METRICS = "job.yaml", "cells", "metrics.json"
STATED = 3
"""How many models' figures fit into a line."""


@dataclass(frozen=True)
class FoundRun:
    """A run directory: when it was begun, how it stands, the figures of its models, and its size in bytes.

    cells: how the runs of a grid's cells stand, by name; None for a run that is no grid.
    """

    path: Path
    started: datetime | None
    status: str
    figures: Mapping[str, str]
    size: int
    cells: Mapping[str, str] | None = None

    @property
    def finished(self) -> list[Path]:
        """The finished run directories: this one, or those of a grid's cells."""
        if self.cells is None:
            return [self.path] if self.status == FINISHED else []
        return [self.path / CELLS / name for name, status in self.cells.items() if status == FINISHED]


def find_runs(folder: Path) -> Iterator[FoundRun]:
    """The run directories below `folder`, or `folder` itself, the newest job's last; links are not followed."""
    for parent, folders, files in os.walk(folder):
        path = Path(parent)
        if RECORD in files and JOB_FILE in files:
            yield _run(path)
        elif JOB_FILE in files and CELLS in folders:
            yield _grid(path)
        else:
            folders.sort()
            continue
        folders.clear()


def _run(path: Path) -> FoundRun:
    record = read_json(path / RECORD) or {}
    status = status_of(record) if "status" in record else "unreadable"
    figures = headlines(read_json(path / METRICS))
    return FoundRun(path, _moment(record.get("started")), status, figures, size_of(path))


def _grid(path: Path) -> FoundRun:
    """A grid, by the runs of the cells that were begun; how many it asks for, only its job says."""
    cells = {file.parent.name: read_json(file) or {} for file in sorted(path.glob(f"{CELLS}/*/{RECORD}"))}
    states = {name: status_of(record) if "status" in record else "unreadable" for name, record in cells.items()}
    started = min((record["started"] for record in cells.values() if "started" in record), default=None)
    done = sum(state == FINISHED for state in states.values())
    return FoundRun(path, _moment(started), f"{done} of {len(states)} begun cells", {}, size_of(path), states)


def _moment(started: str | None) -> datetime | None:
    return None if started is None else datetime.fromisoformat(started)


def headlines(metrics: Mapping[str, Any] | None) -> dict[str, str]:
    """The first figure of every model's results: name -> "97.5 %", of what a report's table begins with."""
    found: dict[str, str] = {}
    for key, _, write in SECTIONS[0]:
        for name, value in (metrics or {}).items():
            model, _, metric = name.rpartition("/")
            if metric == key:
                found.setdefault(model, f"{key} {write(value)}")
    return found


def size_of(path: Path) -> int:
    """The bytes of the files below `path`; a file with several names counts once."""
    seen: dict[tuple[int, int], int] = {}
    for parent, _, files in os.walk(path):
        for name in files:
            try:
                status = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:  # a run that goes on has just removed it
                continue
            seen[status.st_dev, status.st_ino] = status.st_size
    return sum(seen.values())


def in_words(size: int) -> str:
    """A number of bytes in MB, or in GB from 1,000 MB on."""
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def runs_table(folder: Path, runs: list[FoundRun]) -> Table:
    """The runs of `folder`, one a row, in the order in which they were begun."""
    columns = tuple(Column("", name) for name in ("begun", "state", "figures", "size"))
    rows = []
    for run in sorted(runs, key=lambda run: run.started or datetime.min):
        begun = f"{run.started:%Y-%m-%d %H:%M}" if run.started else ABSENT
        name = str(run.path.relative_to(folder)) if run.path != folder else run.path.name
        rows.append(Row(name, (begun, run.status, _line(run.figures), in_words(run.size))))
    total = f"{len(runs)} run{'s' if len(runs) != 1 else ''}, {in_words(sum(run.size for run in runs))}"
    return Table(f"Runs in {folder}", columns, tuple(rows), (total,), "run", left=True)


def _line(figures: Mapping[str, str]) -> str:
    stated = [f"{model}: {figure}" for model, figure in list(figures.items())[:STATED]]
    more = [f"and {len(figures) - STATED} more"] if len(figures) > STATED else []
    return "\n".join([*stated, *more]) or ABSENT
