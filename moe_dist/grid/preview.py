"""What `moe-dist show` tells of a grid: its cells, how each ended so far, and an estimate of each and in all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.grid.cells import Cell, cells_of
from moe_dist.grid.state import run_folder, state_of
from moe_dist.job import Job, dump_job
from moe_dist.methods.registry import method_class
from moe_dist.places import FINISHED, RECORD
from moe_dist.plots.tables import ABSENT, Column, Row, Table, to_rich
from moe_dist.run.notices import notices
from moe_dist.run.preview import can_be_timed, expected_info, seconds_a_step, steps_of
from moe_dist.terminal import duration, say, say_table, short


def preview_grid(job: Job, folder: Path, console: Console) -> None:
    """Print the resolved job, what is to be known of its cells, and each cell's state in `folder` with an estimate.

    Nothing is trained or written; the estimates time a few steps on random images.
    """
    say(console, dump_job(job))
    cells, estimates, rows = cells_of(job), Estimates(), []
    for sentence in dict.fromkeys(sentence for cell in cells for sentence in notices(cell.job)):
        say(console, ("!", "yellow"), f" {sentence}")
    total, left, all_timed = 0.0, 0.0, True
    for cell in cells:
        state = _state(folder, cell)
        try:
            seconds, whole = estimates.of(cell)
        except UserError as error:  # images that are not at hand
            estimates.refused.append(str(error))
            rows.append(Row(cell.name, (state, ABSENT)))
            continue
        known = f"{'about' if whole else 'more than'} {duration(seconds)}" if seconds else "known only when it runs"
        rows.append(Row(cell.name, (state, known)))
        all_timed &= whole
        total += seconds
        left += 0 if state.startswith(FINISHED) else seconds
    columns = (Column("", "state"), Column("", "estimate"))
    say_table(console, to_rich(Table("Cells", columns, tuple(rows), (), "cell", True)))
    for sentence in dict.fromkeys(estimates.refused):
        say(console, ("!", "yellow"), f" no estimate: {sentence}")
    done = sum(row.cells[0].startswith(FINISHED) for row in rows)
    about = "about" if all_timed else "more than"
    times = f", {about} {duration(total)} in all on one thread of a CPU like this one" if total else ""
    rest = f", {about} {duration(left)} are left" if total else ""
    say(console, f"{len(cells)} cells{times}; {done} are done in {short(folder)}{rest}")


def _state(folder: Path, cell: Cell) -> str:
    state = state_of(folder, cell)
    if state.status == FINISHED:
        record = read_json(run_folder(folder, cell) / RECORD)
        return f"{FINISHED}, {duration(record['seconds'])}" if record else FINISHED
    if state.changed:
        return f"{state.status} with {'; '.join(state.changed)}"
    return f"{state.status}: {state.reason}" if state.reason else state.status


@dataclass
class Estimates:
    """Estimates of cells, in which what several have in common is measured once.

    refused: why cells have none.
    """

    refused: list[str] = field(default_factory=list)
    _infos: dict[str, DatasetInfo] = field(default_factory=dict)
    _steps: dict[tuple[str, str, int, int, int], float] = field(default_factory=dict)
    _cells: dict[str, tuple[float, bool]] = field(default_factory=dict)

    def of(self, cell: Cell) -> tuple[float, bool]:
        """About how many seconds the cell's trainings take, and whether that is all of them.

        Stages that need what phases before them make cannot be timed before. A step is timed once for networks of one
        method and size, batches and images of one size.
        """
        config, data = cell.job.models[(label := next(iter(cell.job.models)))], cell.job.data
        key = f"{config.model_dump_json()} {data.model_dump_json()}"
        if key in self._cells:
            return self._cells[key]
        if (data_key := data.model_dump_json()) not in self._infos:
            self._infos[data_key] = expected_info(cell.job)
        method = method_class(config.name)(config, self._infos[data_key])
        network = method.build(IN_ONE_PROCESS, {}, cell.job.seed)
        size = sum(parameter.numel() for parameter in network.parameters())
        seconds, stages = 0.0, method.stages()
        for stage in filter(can_be_timed, stages):
            like = (label, stage.name, size, stage.batch_size, data.image_size)
            if like not in self._steps:
                self._steps[like] = seconds_a_step(method, network, stage)
            seconds += steps_of(method, stage) * self._steps[like]
        whole = len(stages) == len(method.phases()) and all(map(can_be_timed, stages))
        self._cells[key] = (seconds, whole)
        return self._cells[key]
