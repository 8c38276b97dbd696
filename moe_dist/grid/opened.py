"""The images of a grid's cells, each set opened once in this process, and what they say about cells."""

from __future__ import annotations

from pathlib import Path

from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import OpenedData, open_data
from moe_dist.grid.cell import noting_failure
from moe_dist.grid.cells import Cell
from moe_dist.grid.state import run_folder, state_of
from moe_dist.job import Job
from moe_dist.places import FINISHED, RECORD, ModelFolder, cache_folder, shared_cache
from moe_dist.record.fingerprints import PlannedStep, plan
from moe_dist.record.sharing import STEP_DONE, TRAINING_DONE
from moe_dist.report.run import read_result
from moe_dist.terminal import Show
from moe_dist.train.origin import origin_of
from moe_dist.train.task import open_method


class Opened:
    """The images that jobs ask for; shards that are not there are built."""

    def __init__(self, show: Show) -> None:
        self._show = show
        self._found: dict[tuple[str, int], OpenedData] = {}

    def data(self, job: Job) -> OpenedData:
        """The job's training, validation and test images."""
        key = (job.data.model_dump_json(), job.seed)
        if key not in self._found:
            with self._show.working("data"):
                place = ensure_shards(job.data, shared_cache(), self._show.shards)
                self._found[key] = open_data(job.data, job.seed, cache_folder(), place)
        return self._found[key]


def is_done(folder: Path, cell: Cell, opened: Opened, show: Show) -> bool:
    """Whether nothing is left to run of a cell: it is finished on these images, or they cannot be opened."""
    state = state_of(folder, cell)
    if state.changed:
        show.notice(f"{cell.name}: other settings than before ({'; '.join(state.changed)})")
    if state.status != FINISHED:
        return False
    with noting_failure(folder, cell, show):
        if state.digests != opened.data(cell.job).digests:
            show.notice(f"{cell.name}: other images than before")
            return False
        show.skipped("finished", read_result(run_folder(folder, cell) / RECORD)["seconds"])
    return True


def files_made(cell: Cell, opened: Opened) -> list[str]:
    """The files that say that a step or a training of the cell is done, below the folder of its model.

    Their names hold the fingerprints: cells that share one share its result.
    """
    ((model, _),) = cell.job.models.items()
    data = opened.data(cell.job)
    origin = origin_of(cell.job, model)
    planned = plan(open_method(cell.job, model, data), cell.job, model, data, origin.settings() if origin else None)
    below, found = ModelFolder(Path()), []
    for item in planned:
        if isinstance(item, PlannedStep):
            found.append(below.step(item.step.name, item.fingerprint) / STEP_DONE)
        else:
            found += [below.training(training.fingerprint) / TRAINING_DONE for training in item]
    return [path.as_posix() for path in found]
