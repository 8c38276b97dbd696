"""Loads a trained model from a run directory, or from a folder that `moe-dist export` wrote.

Neither the data of the training nor Ray or DeepSpeed are needed, and nothing is unpickled: settings are YAML and JSON,
weights safetensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.checkpoint import load_weights, read_state
from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.places import RECORD, ModelFolder
from moe_dist.record.exported import is_exported
from moe_dist.record.run_place import run_place
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.finished import Choice, finished_checkpoint, job_of_run, model_of_run
from moe_dist.use.exported import empty_network, load_exported
from moe_dist.use.model import TrainedModel
from moe_dist.use.preprocess import Preprocessing


@dataclass(frozen=True)
class Loading:
    """What to load, so that other processes can load it, too: the arguments of `load`."""

    run: str
    model: str | None = None
    checkpoint: Choice = "chosen"
    calibrated: bool = False

    def load(self) -> TrainedModel:
        """The model."""
        return load(self.run, self.model, self.checkpoint, calibrated=self.calibrated)


def load(
    run: str | Path, model: str | None = None, checkpoint: Choice = "chosen", *, calibrated: bool = False
) -> TrainedModel:
    """The model that a run trained, on the CPU; `run` may also be what `moe-dist export` wrote, and either at a URL.

    model: its name in the job, which a run of several models needs. checkpoint: the one chosen on validation, which
    is the last one where nothing was validated, or the last one. calibrated: whether probabilities are at the
    temperature that the run fitted on validation. Raises UserError where there is no finished training, a checkpoint is
    damaged, an earlier version recorded too little, or no temperature was fitted.
    """
    folder = run_place("run")(str(run)).fetched()
    if is_exported(folder):
        if model is not None or checkpoint != "chosen":
            raise UserError(
                f"{folder}: is an exported model, one checkpoint of one model; leave model and checkpoint out"
            )
        return load_exported(folder).calibrate() if calibrated else load_exported(folder)
    if checkpoint not in ("chosen", "last"):
        raise UserError(f"checkpoint = {checkpoint!r}: choose chosen or last")
    job = job_of_run(folder)
    name = model_of_run(folder, job, model)
    method, network = empty_network(job.models[name], _info(folder, job, name), job.seed)
    path = finished_checkpoint(folder, name, checkpoint)
    load_weights(path, network)
    about: dict[str, Any] = {"run": folder.resolve().name, "model": name, "training": path.parents[1].name}
    about |= {"checkpoint": path.name, "asked_for": checkpoint, "step": read_state(path)["step"], "seed": job.seed}
    about |= {"job": job.name, "dataset": job.data.dataset, "is_last": path == newest_checkpoint(path.parent)}
    about["calibration"] = _calibration(folder, name, path)
    loaded = TrainedModel(method, network, _preprocessing(job, method), about)
    return loaded.calibrate() if calibrated else loaded


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


def _calibration(folder: Path, model: str, checkpoint: Path) -> dict[str, float] | None:
    """What the run's evaluation fitted on validation for a checkpoint, if anything."""
    evaluation = ModelFolder(folder / model).current().evaluation
    about = read_json(evaluation / "evaluation.json") if evaluation else None
    return about.get("calibration", {}).get(checkpoint.name) if about else None
