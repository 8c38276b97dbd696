"""The objects that the parts of a run share in the driver, the process that runs the job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moe_dist.data.opened.opened import OpenedData
from moe_dist.job import Job
from moe_dist.launch.launcher import Launcher
from moe_dist.record.run_record import RunRecord
from moe_dist.terminal import Show


@dataclass(frozen=True)
class Drive:
    """The job, run directory, data, launcher, record and display of a run."""

    job: Job
    run: Path
    data: OpenedData
    launcher: Launcher
    record: RunRecord
    show: Show
