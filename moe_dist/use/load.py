"""Loads a trained model from a run directory, or from a folder that `moe-dist export` wrote.

Neither the data of the training nor Ray or DeepSpeed are needed, and nothing is unpickled: settings are YAML and JSON,
weights safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.checkpoint import damaged_file, load_weights, read_state
from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.job import Job, load_job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.paths import FOR_RUNS, typed
from moe_dist.places import RECORD, ModelFolder
from moe_dist.record.sharing import TRAINING_DONE
from moe_dist.train.checkpoints import best_on_validation, newest_checkpoint
from moe_dist.use.exported import empty_network, is_exported, load_exported
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing

Choice = Literal["chosen", "last"]


def load(run: str | Path, model: str | None = None, checkpoint: Choice = "chosen") -> TrainedModel:
    """The model that a run trained, on the CPU; `run` may also be a folder that `moe-dist export` wrote.

    model: its name in the job, which a run of several models needs. checkpoint: the one chosen on validation, which
    is the last one where nothing was validated, or the last one. Raises UserError where there is no finished training,
    a checkpoint is damaged, or an earlier version recorded too little.
    """
    folder = typed("run", FOR_RUNS)(str(run))
    if is_exported(folder):
        if model is not None or checkpoint != "chosen":
            raise UserError(
                f"{folder}: is an exported model, one checkpoint of one model; leave model and checkpoint out"
            )
        return load_exported(folder)
    if checkpoint not in ("chosen", "last"):
        raise UserError(f"checkpoint = {checkpoint!r}: choose chosen or last")
    job = job_of(folder)
    name = _model_name(folder, job, model)
    method, network = empty_network(job.models[name], _info(folder, job, name), job.seed)
    path = _checkpoint(folder, name, checkpoint)
    load_weights(path, network)
    about: dict[str, Any] = {"run": folder.resolve().name, "model": name, "training": path.parents[1].name}
    about |= {"checkpoint": path.name, "asked_for": checkpoint, "step": read_state(path)["step"], "seed": job.seed}
    about |= {"job": job.name, "dataset": job.data.dataset, "is_last": path == newest_checkpoint(path.parent)}
    return TrainedModel(method, network, _preprocessing(job, method), about)


def job_of(folder: Path) -> Job:
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


def _model_name(folder: Path, job: Job, asked: str | None) -> str:
    """The model that is meant. Raises UserError where that is not clear."""
    names = list(job.models)
    if asked is None and len(names) == 1:
        return names[0]
    if asked not in names:
        given = "trained several models" if asked is None else f"has no model {asked!r}"
        raise UserError(f"{folder}: {given}; choose one as model (--model): {', '.join(names)}")
    return asked


def _info(folder: Path, job: Job, model: str) -> DatasetInfo:
    """The facts of the training's dataset, from run.json. Raises UserError where an earlier version left one out."""
    record: dict[str, Any] = read_json(folder / RECORD) or {}
    takes_vectors = method_class(job.models[model].name).takes_vectors
    needed = ["classes", "counts", *(["vector_size"] if takes_vectors else [])]
    if missing := [name for name in needed if name not in record]:
        raise UserError(
            f"{folder / RECORD}: does not say {' and '.join(missing)}, as an earlier version wrote it; run the job "
            "again with --resume, which trains nothing anew and writes it"
        )
    superclasses = record.get("superclasses")
    return DatasetInfo(
        classes=len(record["classes"]),
        class_names=tuple(record["classes"]),
        image_size=job.data.image_size,
        train_images=record["counts"]["train"],
        class_counts=tuple(record.get("class_counts") or ()),
        vector_size=record.get("vector_size", 0),
        superclasses=tuple(superclasses) if superclasses else None,
    )


def _preprocessing(job: Job, method: Method) -> Preprocessing:
    data = job.data
    return Preprocessing(data.image_size, data.frame, data.mean, data.std, data.crop_roi, method.info.vector_size)


def _checkpoint(folder: Path, model: str, choice: Choice) -> Path:
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
