"""What all parts of a run work with, from the driver's side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_dist.data.opened.opened import OpenedData
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.methods.base import Method
from moe_dist.places import ModelFolder
from moe_dist.record.results import Results
from moe_dist.record.run_record import RunRecord
from moe_dist.terminal import Show
from moe_dist.train.steps import run_steps


@dataclass(frozen=True)
class Drive:
    """What all parts of a run work with."""

    job: Job
    run: Path
    data: OpenedData
    launcher: Launcher
    record: RunRecord
    show: Show

    def steps(self, label: str, method: Method, last: str | None = None) -> Results:
        """The results of the model's steps up to `last` (None: all), run where they are not there yet."""
        model = ModelFolder(self.run / label)
        return run_steps(method, self.job, self.data, model, self.launcher.run_tasks, self.record, self.show, last)
