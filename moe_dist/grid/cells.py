"""The cells of a grid: each a job of kind `train` by itself, named after its place on the grid's axes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.overrides import set_field
from moe_dist.settings.grid import DATA, METHOD, SEED, GridConfig

CHANGEABLE = ("method", "data", "workers", "parallel", "resources", "checkpoint")
"""The parts of a cell's job that `grid.changes` may change."""
OF_NO_RESULT = {
    "": ("name", "kind", "title"),
    "data": ("source", "shards", "loader_workers", "remote"),
    "resources": ("cpus_per_worker", "cpus_per_task", "gpus_per_task", "graphs"),
    "checkpoint": ("every_steps", "max_failures"),
}
"""Fields of a cell's job that no figure depends on: the digests of the images say which they were."""


@dataclass(frozen=True)
class Cell:
    """One cell of a grid.

    at: its name on every axis, the seed last; job: what is run, as a job of one method.
    """

    at: Mapping[str, str]
    job: Job

    @property
    def name(self) -> str:
        """Its name, also the name of its run directory: dfcp.digits.seed0."""
        return name_of(self.at)

    def asked(self) -> dict[str, Any]:
        """The settings that the cell's figures may depend on, as plain values."""
        settings = self.job.model_dump(mode="json")
        for part, fields in OF_NO_RESULT.items():
            for field in fields:
                (settings[part] if part else settings).pop(field, None)
        if settings["data"]["imbalance"] is None:
            del settings["data"]["imbalance_choice"], settings["data"]["imbalance_seed"]
        return settings


def name_of(at: Mapping[str, str]) -> str:
    """The name of the cell at this place. Names on the axes hold no dots, so it is one cell's alone."""
    return ".".join(f"seed{name}" if axis == SEED else name for axis, name in at.items())


def grid_of(job: Job) -> GridConfig:
    """The section `grid` of a job that has one."""
    assert job.grid is not None
    return job.grid


def axes_of(job: Job) -> dict[str, list[str]]:
    """The names on every axis of a grid, in the order of the job."""
    grid = grid_of(job)
    axes = {METHOD: [*job.methods], DATA: [*grid.data] or [job.data.dataset]}
    axes |= {axis: [*entries] for axis, entries in grid.changes.items()}
    return axes | {SEED: [str(seed) for seed in grid.seeds or (job.seed,)]}


def cells_of(job: Job) -> list[Cell]:
    """All cells of a grid, those of the first seed first.

    Raises UserError where a place names what no axis has, where nothing is left, and where a cell's job does not load.
    """
    grid, axes = grid_of(job), axes_of(job)
    named = [("leave_out", place) for place in grid.leave_out]
    named += [("paper.where", paper.where) for paper in grid.paper]
    named += [("tables.where", table.where) for table in grid.tables]
    compared = [("against", grid.against), *(("tables.against", table.against) for table in grid.tables)]
    named += [(field, {axis: (name,) for axis, name in against.items()}) for field, against in compared]
    for field, place in named:
        _require_names(place, axes, f"{job.name}: grid.{field}")
    for field, against in compared:
        if SEED in against:
            raise UserError(f"{job.name}: grid.{field}.seed: seeds are compared one by one; leave it out")
    common = job.model_dump(mode="json", exclude={"name", "kind", "title", "methods", "grid", "paper_table"})
    places = [at for at in _places(axes) if not any(lies_in(at, place) for place in grid.leave_out)]
    if grid.tables:
        places = [at for at in places if any(lies_in(at, table.where) for table in grid.tables)]
    if not places:
        raise UserError(f"{job.name}: grid.leave_out{' and grid.tables leave' if grid.tables else ' leaves'} no cell")
    return [Cell(at, _cell_job(job, at, common)) for at in places]


def lies_in(at: Mapping[str, str], place: Mapping[str, Sequence[str]]) -> bool:
    """Whether the cell at `at` is one of those at `place`."""
    return all(at[axis] in names for axis, names in place.items())


def _places(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every combination of names, the seed changing last."""
    others = [axis for axis in axes if axis != SEED]
    for names in product(axes[SEED], *(axes[axis] for axis in others)):
        yield dict(zip(others, names[1:])) | {SEED: names[0]}


def _require_names(place: Mapping[str, Sequence[str]], axes: Mapping[str, Sequence[str]], where: str) -> None:
    for axis, names in place.items():
        if axis not in axes:
            raise UserError(f"{where}: no axis is called {axis!r}; choose of {', '.join(axes)}")
        if unknown := [name for name in names if name not in axes[axis]]:
            raise UserError(f"{where}.{axis}: no {axis} is called {unknown[0]!r}; choose of {', '.join(axes[axis])}")


def _cell_job(job: Job, at: Mapping[str, str], common: Mapping[str, Any]) -> Job:
    """The job of the cell at this place. common: the fields of the grid's job that every cell has."""
    grid, name = grid_of(job), name_of(at)
    content = copy.deepcopy(dict(common))
    title = f"{job.title or job.name}: {name}"
    content |= {"name": f"{job.name}.{name}", "kind": "train", "title": title, "seed": int(at[SEED])}
    content["method"] = job.methods[at[METHOD]].model_dump(mode="json")
    if grid.data:
        content["data"] |= grid.data[at[DATA]].model_dump(mode="json", exclude_unset=True)
    for axis, entries in grid.changes.items():
        for field, value in entries[at[axis]].items():
            if field.partition(".")[0] not in CHANGEABLE:
                raise UserError(
                    f"{job.name}: grid.changes.{axis}.{at[axis]}: {field} is not a field that cells may differ in; "
                    f"write a field of {', '.join(CHANGEABLE)}"
                )
            set_field(content, field, value, f"{job.name}: grid.changes.{axis}.{at[axis]}")
    return parse_job(content, f"{job.name}, cell {name}")
