"""A record that grows: what a grid's folder holds, and the cells that the record has from elsewhere.

So the cells of one table can be run on several machines, or on one that is not kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.files import require_writable, write_text
from moe_dist.grid.cells import cells_of, lies_in, name_of
from moe_dist.grid.record import Record, read_record, record_of, record_text, without_places
from moe_dist.job import parse_job
from moe_dist.places import FINISHED
from moe_dist.record.differences import differences
from moe_dist.settings.grid import METHOD, SEED


@dataclass(frozen=True)
class Grown:
    """What became of an earlier record's cells: how many were kept, and the names of those dropped, by the reason."""

    kept: int
    dropped: Mapping[str, Sequence[str]]


def write_record(folder: Path, file: Path) -> Grown:
    """Write the record of the grid in `folder`, keeping what `file` has and the folder has not.

    A finished cell of an earlier record is kept where the folder has not finished it, if it was made with the settings
    that the folder's grid asks for and on the test images that its other cells saw.
    Raises UserError where `file` holds something else, before anything is written.
    """
    require_writable(file.parent, f"the record of {folder}")
    record: Record = record_of(folder)
    grown = Grown(0, {})
    if file.exists():
        record, grown = _with_cells_of(record, read_record(file))
    write_text(file, record_text(record))
    return grown


def _with_cells_of(record: Record, earlier: Record) -> tuple[Record, Grown]:
    """The record with what it can take of an earlier one."""
    here = {name_of(cell["at"]) for cell in record["cells"] if cell["status"] == FINISHED}
    missing = {name_of(cell["at"]): cell for cell in earlier["cells"] if cell["status"] == FINISHED}
    missing = {name: cell for name, cell in missing.items() if name not in here}
    asked = _asked(record["job"], _with_seeds_of(record["axes"], missing))
    asked_before = _asked(earlier["job"], earlier["axes"])
    kept: dict[str, Mapping[str, Any]] = {}
    dropped: dict[str, list[str]] = {}
    for name, cell in missing.items():
        if name not in asked:
            dropped.setdefault("no cell of this grid", []).append(name)
        elif name not in asked_before:
            dropped.setdefault("made by a job that does not load any more", []).append(name)
        elif changed := differences(asked_before[name], asked[name]):
            dropped.setdefault(f"other settings ({'; '.join(changed)})", []).append(name)
        elif _other_images(cell, record):
            dropped.setdefault("other images", []).append(name)
        else:
            kept[name] = cell
    if not kept:
        return record, Grown(0, dropped)
    cells = {name_of(cell["at"]): cell for cell in record["cells"]} | kept
    axes, grid = _with_seeds_of(record["axes"], kept), record["job"]["grid"]
    left_out = [place for place in grid["leave_out"] if not any(lies_in(cell["at"], place) for cell in kept.values())]
    job = {**record["job"], "grid": {**grid, "seeds": [*map(int, axes[SEED])], "leave_out": left_out}}
    ordered = [cells[name] for name in asked if name in cells]
    return {**record, "job": job, "axes": axes, "cells": ordered}, Grown(len(kept), dropped)


def _with_seeds_of(axes: Mapping[str, Any], cells: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The axes, with the seeds of these cells among theirs."""
    seeds = {*axes[SEED], *(cell["at"][SEED] for cell in cells.values())}
    return {**axes, SEED: sorted(seeds, key=int)}


def _asked(job: Mapping[str, Any], axes: Mapping[str, Any]) -> dict[str, Any]:
    """By cell, the settings that its figures may depend on, for every place on the axes, without places of a machine.

    Nothing where the job does not load any more, as one of a later or a much earlier version.
    """
    everywhere = {**job["grid"], "seeds": axes[SEED], "leave_out": []}
    try:
        cells = cells_of(parse_job({**job, "grid": everywhere}, job["name"]))
    except UserError:
        return {}
    return {cell.name: without_places(cell.asked()) for cell in cells}


def _other_images(cell: Mapping[str, Any], record: Record) -> bool:
    """Whether a finished cell of the record, of another method at the same place, saw other images than this one."""
    place = {axis: [name] for axis, name in cell["at"].items() if axis != METHOD}
    beside = [other for other in record["cells"] if other["status"] == FINISHED and lies_in(other["at"], place)]
    return any((other["split"], other["test_split"]) != (cell["split"], cell["test_split"]) for other in beside)
