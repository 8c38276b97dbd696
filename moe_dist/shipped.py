"""Finds the jobs that come with the package by their names: `icl/ablation` is jobs/icl/ablation.yaml.

In a checkout they lie in jobs/ beside the package, in an installed package inside it. So do files of overrides.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from moe_dist.errors import UserError
from moe_dist.paths import typed

PACKAGE = Path(__file__).parent
JOBS = next((folder for folder in (PACKAGE / "jobs", PACKAGE.parent / "jobs") if folder.is_dir()), PACKAGE / "jobs")
"""The folder of the jobs that come with the package."""
JOB, OVERRIDES = ".yaml", ".set"


def shipped(ending: str = JOB) -> dict[str, Path]:
    """The files that come with the package, jobs or files of overrides, by name. Recipes, which jobs load, are none."""
    files = {path.relative_to(JOBS).with_suffix("").as_posix(): path for path in sorted(JOBS.rglob(f"*{ending}"))}
    return {name: path for name, path in files.items() if ending != JOB or title(path)}


def title(job: Path) -> str:
    """The sentence that says what a job is for: its first line, a comment; "" for a file that is no job."""
    content = job.read_text()
    return content.partition("\n")[0].removeprefix("# ") if "\nkind:" in content else ""


def found(given: Path, ending: str) -> Path:
    """The file that a user means: the path that is given, or else what comes with the package under that name."""
    return given if given.is_file() else shipped(ending).get(given.as_posix(), given)


def job_file(text: str) -> Path:
    """The job file that a user names, by a path or by a name. Raises UserError where there is none."""
    path = found(typed("JOB.yaml", "download the job")(text), JOB)
    name = path.with_suffix("").as_posix().removeprefix("jobs/")
    if path.exists() or (path.suffix and name not in shipped()):
        return path  # what is wrong with a path is told by what reads it
    near = get_close_matches(name, shipped(), cutoff=0.5)
    mend = f"did you mean {' or '.join(near)}?" if near else "`moe-dist show` lists the jobs that come with the package"
    raise UserError(f"{path}: is neither a file nor a job that comes with the package; {mend}")
