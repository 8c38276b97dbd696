"""What a run was begun with, from its own record: the job with all its settings, and the launcher."""

from __future__ import annotations

from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.files import read_json, read_text
from moe_dist.job import Job, parse_job
from moe_dist.launch.choose import LAUNCHERS
from moe_dist.places import RECORD
from moe_dist.yaml_core import load_run_yaml


def begun_with(run: Path) -> Job:
    """The job that the run in `run`, or the grid, was begun with. Raises UserError where there is none."""
    path = run / "job.yaml"
    if not path.is_file():
        newest = f"; its newest run is {run / 'latest'}" if (run / "latest" / "job.yaml").is_file() else ""
        raise UserError(f"{run}: no run is there{newest or '; `moe-dist runs list` shows those in runs/'}")
    try:
        content = load_run_yaml(read_text(path, str(path), "job file"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds no job any more (was the power cut?); go on with `moe-dist run JOB --resume --out {run}`, "
            "where JOB is the file that it was begun with"
        )
    return parse_job(content, str(path), run)


def recorded_launcher(run: Path) -> str:
    """The launcher of the run's last start, of a grid that of any cell's; the default where none was recorded yet."""
    records = [read_json(path) for path in (run / RECORD, *sorted(run.glob(f"cells/*/{RECORD}")))]
    recorded = [record["starts"][-1]["launcher"] for record in records if record and record.get("starts")]
    return recorded[0] if recorded else LAUNCHERS[0]
