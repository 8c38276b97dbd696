"""What all parts of a run work with, from the driver's side."""

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
    """What all parts of a run work with.

    shares: results are taken over from runs beside this one, in the same folder, where fingerprints are equal.
    """

    job: Job
    run: Path
    data: OpenedData
    launcher: Launcher
    record: RunRecord
    show: Show
    shares: bool = False
