"""The finished trainings of a run directory: its job, its models, and the checkpoint that is meant."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from moe_dist.engine.checkpoint import damaged_file
from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.job import Job, load_job
from moe_dist.places import ModelFolder
from moe_dist.record.sharing import TRAINING_DONE
from moe_dist.train.checkpoints import best_on_validation, newest_checkpoint

Choice = Literal["chosen", "last"]
"""The checkpoint that validation chose, which is the last one where nothing was validated, or the last one."""


def job_of_run(folder: Path) -> Job:
    """The resolved job of a run directory. Raises UserError for any other folder."""
    if not (folder / "job.yaml").is_file():
        raise UserError(
            f"{folder}: neither a run directory (it has no job.yaml) nor an exported model; give the folder that "
            "`moe-dist run` printed"
        )
    job = load_job(folder / "job.yaml")
    if job.grid is not None:
        raise UserError(f"{folder}: holds a grid of runs; give one of them, {folder / 'cells'}/NAME")
    if job.kind == "tune":
        raise UserError(
            f"{folder}: holds a search, which keeps no trained model; run a job with the recipe that it found"
        )
    return job


def model_of_run(folder: Path, job: Job, asked: str | None) -> str:
    """The model that is meant. Raises UserError where that is not clear."""
    names = list(job.models)
    if asked is None and len(names) == 1:
        return names[0]
    if asked not in names:
        given = "trained several models" if asked is None else f"has no model {asked!r}"
        raise UserError(f"{folder}: {given}; choose one as model (--model): {', '.join(names)}")
    return asked


def finished_checkpoint(folder: Path, model: str, choice: Choice) -> Path:
    """The checkpoint of a model's finished training. Raises UserError where there is none, or it is damaged."""
    training = ModelFolder(folder / model).current().training
    if training is None or read_json(training / TRAINING_DONE) is None:
        raise UserError(f"{folder}: the training of {model} is not finished; go on with `moe-dist run` and --resume")
    kept = training / "checkpoints"
    path = newest_checkpoint(kept)
    if choice == "chosen":
        path = best_on_validation(kept) or path
    if path is None:
        raise UserError(f"{kept}: holds no whole checkpoint; run the job again with --resume, which trains it anew")
    if file := damaged_file(path):
        raise UserError(
            f"{path}: {file} does not hold the bytes that were written; load the other checkpoint (chosen, last), or "
            "run the job again with --resume"
        )
    return path
