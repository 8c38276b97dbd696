"""How the run of each cell ended, as the grid's folder remembers it: <grid>/cells/<cell>.json, and <cell>.log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.errors import UserError
from moe_dist.files import read_json, write_json
from moe_dist.grid.cells import Cell
from moe_dist.job import parse_job
from moe_dist.places import FAILED, FINISHED
from moe_dist.record.differences import differences
from moe_dist.record.mirror import CELLS

NOT_RUN, UNFINISHED = "not run", "unfinished"
"""A cell that was never run, or with other settings than the grid asks for now; one whose run was stopped or killed."""


@dataclass(frozen=True)
class CellState:
    """How the run of a cell ended: `finished`, `failed`, `unfinished` or `not run`.

    reason: why it failed; digests: of the images that it saw; changed: what differs from the settings that it was run
    with before, by field.
    """

    status: str
    reason: str = ""
    digests: Mapping[str, str] | None = None
    changed: tuple[str, ...] = ()


def run_folder(folder: Path, cell: Cell) -> Path:
    """The run directory of a cell of the grid in `folder`."""
    return folder / CELLS / cell.name


def log_file(folder: Path, cell: Cell) -> Path:
    """The file that holds what a cell printed which ran beside others."""
    return folder / CELLS / f"{cell.name}.log"


def state_file(folder: Path, cell: Cell) -> Path:
    """The file that says how the run of a cell ended."""
    return folder / CELLS / f"{cell.name}.json"


def state_of(folder: Path, cell: Cell) -> CellState:
    """The state of a cell of the grid in `folder`."""
    found = read_json(state_file(folder, cell))
    if found is None:
        return CellState(NOT_RUN)
    if changed := differences(_asked_before(found["asked"], cell), cell.asked()):
        return CellState(NOT_RUN, changed=tuple(changed))
    return CellState(found["status"], found.get("reason", ""), found.get("digests"))


def _asked_before(asked: Mapping[str, Any], cell: Cell) -> Mapping[str, Any]:
    """What a cell was run with, as plain values of today: fields that have come since then have their defaults."""
    named = {field: getattr(cell.job, field) for field in ("name", "kind")}
    try:
        return Cell(cell.at, parse_job({**asked, **named}, cell.name)).asked()
    except UserError:  # it has fields or values that are no longer known, which are then differences
        return asked


def note_begun(folder: Path, cell: Cell) -> None:
    """Write that the run of a cell begins; until it ends, nothing of it counts."""
    write_json(state_file(folder, cell), {"status": UNFINISHED, "asked": cell.asked()})


def note_failed(folder: Path, cell: Cell, reason: str) -> None:
    """Write that the run of a cell failed, and why."""
    write_json(state_file(folder, cell), {"status": FAILED, "reason": reason, "asked": cell.asked()})


def note_finished(folder: Path, cell: Cell, digests: Mapping[str, str]) -> None:
    """Write that the run of a cell is finished, on images of these digests."""
    write_json(state_file(folder, cell), {"status": FINISHED, "digests": dict(digests), "asked": cell.asked()})
