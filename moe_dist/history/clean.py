"""What may be removed of runs: results that no report shows any more; if it is asked for, runs that never finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from moe_dist.history.found import FoundRun, size_of
from moe_dist.places import CURRENT, FAILED, KILLED, STOPPED, ModelFolder
from moe_dist.record.one_driver import only_driver
from moe_dist.terminal import Show

UNFINISHED = (FAILED, STOPPED, KILLED)
SUPERSEDED = "of settings that were changed since; no report shows it"


@dataclass(frozen=True)
class Removable:
    """A folder that may go: why, its size in bytes, and the run directory whose lock protects it."""

    path: Path
    why: str
    size: int
    run: Path


def removable(runs: list[FoundRun], unfinished: bool) -> Iterator[Removable]:
    """What may be removed of `runs`. unfinished: runs that failed, were stopped or killed may go as a whole.

    Of an unfinished run that stays, everything does: a training that it would go on with is shown nowhere yet.
    """
    for found in runs:
        if found.cells is None and unfinished and found.status in UNFINISHED:
            why = f"the run was {found.status}; --resume could go on with it"
            yield Removable(found.path, why, found.size, found.path)
        for run in found.finished:
            yield from _superseded(run, found.path)


def _superseded(run: Path, locked_by: Path) -> Iterator[Removable]:
    """Results of steps, trainings and evaluations of settings that the run has no longer, which no report shows."""
    for model in sorted(path for path in run.iterdir() if (path / CURRENT).is_file()):
        current = ModelFolder(model).current()
        trainings = {*current.earlier.values(), *filter(None, [current.training])}
        shown = {*current.steps.values(), *trainings, *filter(None, [current.evaluation])}
        evaluations = [path for training in trainings for path in training.glob("evaluations/*")]
        for path in sorted([*model.glob("steps/*/*"), *model.glob("trainings/*"), *evaluations]):
            if path.is_dir() and path not in shown:
                yield Removable(path, SUPERSEDED, size_of(path), locked_by)


def remove(what: Removable, show: Show) -> None:
    """Remove it. Raises UserError if a moe-dist works in its run."""
    with only_driver(what.run, show):
        shutil.rmtree(what.path)
