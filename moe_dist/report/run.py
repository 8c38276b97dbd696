"""Reading a run directory: what one run left, by the names the report uses. Nothing here is unpickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.metrics.classification import ClassificationMetrics, classification_metrics, reported_groups
from moe_dist.places import ModelFolder, status_of
from moe_dist.report.paper import PaperTable, paper_table


@dataclass(frozen=True)
class StepRecord:
    """A finished step: its folder, its numbers and tables, how long it took and when it ended (seconds since 1970)."""

    folder: Path
    values: Mapping[str, Any]
    seconds: float
    finished: float

    def array(self, name: str) -> np.ndarray:
        """One of the arrays it left. Read by itself: another one may be a gigabyte of features."""
        return _read_arrays(self.folder / "arrays.npz", name)[name]


@dataclass(frozen=True)
class BadSamplesRecord:
    """How many samples a run could not use, and what was wrong with the first of them, a sentence each."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class Evaluation:
    """A trained model on the test split.

    labels [N]; log_probs [N, C]; gate [N, E] or None; choices [N, E]: the class each expert predicts by itself, and
    divergence [N]: how far their predictions lie apart (metrics.pairwise_divergence), both None where experts predict
    no classes; top_k: k -> log_probs [N, C] of the k experts of largest gate weight; latency: "all" or "top<k>" ->
    median_ms, p99_ms, mean_ms, images; chosen [N]: the classes that the checkpoint of highest top-1 on validation
    predicts, and chosen_epoch, its epoch of the last stage, counted from 1, both None without a validation;
    train_seconds: by the wall clock, and summed over experts that trained side by side; tsne: points [n, 2] and labels
    [n]; grad_cam: images, labels, predicted and cams, as train/explain.py leaves them; both empty where the method
    shows none.
    """

    labels: np.ndarray
    log_probs: np.ndarray
    gate: np.ndarray | None
    choices: np.ndarray | None
    divergence: np.ndarray | None
    top_k: Mapping[int, np.ndarray]
    latency: Mapping[str, Mapping[str, float]]
    chosen: np.ndarray | None
    chosen_epoch: int | None
    train_seconds: float
    train_seconds_summed: float
    labels_used: str
    parameters: int
    tsne: Mapping[str, np.ndarray]
    grad_cam: Mapping[str, np.ndarray]

    @cached_property
    def metrics(self) -> ClassificationMetrics:
        """Metrics of the prediction with all experts."""
        return classification_metrics(self.labels, self.log_probs)


class ModelRun:
    """One model of a run: its log, steps and evaluation, each read when asked for.

    settings: of its method, as the job resolved them; paper_column: whose figures of the paper's table stand beside it;
    None: nobody's.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str, paper_column: str | None) -> None:
        self.folder = folder
        self.label = folder.name
        self._current = ModelFolder(folder).current()
        self.settings = settings
        self.title = title
        self.paper_column = paper_column

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; none where training has not begun."""
        path = self._current.training / "metrics.jsonl" if self._current.training else None
        return _read_log(path) if path and path.is_file() else []

    @cached_property
    def made(self) -> list[dict[str, Any]]:
        """What made the finished training, stretch by stretch (provenance.Made); nothing in a run of layout 1."""
        about = read_json(self._current.training / "training.json") if self._current.training else None
        return about.get("made", []) if about else []

    @cached_property
    def steps(self) -> dict[str, StepRecord]:
        """The finished steps by name, in the order they were finished."""
        done = {name: folder for name, folder in self._current.steps.items() if read_json(folder / "done.json")}
        steps = {name: _read_step(folder) for name, folder in done.items()}
        return dict(sorted(steps.items(), key=lambda item: item[1].finished))

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The evaluation on the test split, or None where the model has not come so far."""
        folder = self._current.evaluation
        return _read_evaluation(folder) if folder and (folder / "evaluation.json").is_file() else None


class RunDirectory:
    """All that one run left. Raises UserError where `path` is no run directory.

    job: the resolved job as plain values; record: run.json (command, data, split, hardware, time); paper: the paper's
    table that the job asks for; models: by label, in the job's order.
    """

    def __init__(self, path: Path) -> None:
        for name in ("job.yaml", "run.json"):
            if not (path / name).is_file():
                raise UserError(
                    f"{path}: no run directory (it has no {name}); give the folder that `moe-dist run` printed"
                )
        self.path = path
        self.job_text, self.job = _read_job(path / "job.yaml")
        self.record: dict[str, Any] = _read_json(path / "run.json")
        key = self.job.get("paper_table")
        self.paper: PaperTable | None = paper_table(key) if key else None
        self.models = {label: self._model(label, method) for label, method in _methods(self.job).items()}

    def _model(self, label: str, settings: Mapping[str, Any]) -> ModelRun:
        # The paper's name belongs to a label. A model called otherwise keeps its own; its method's figures stand beside
        # it where no other model of the job is called as the method.
        titles = self.paper.titles if self.paper else {}
        names = (label,) if settings["name"] in _methods(self.job) else (label, settings["name"])
        column = next((name for name in names if name in titles), None)
        return ModelRun(self.path / label, settings, titles.get(label, label).replace("_", " "), column)

    @property
    def status(self) -> str:
        """How the run stands: running, finished, failed, stopped (by a signal) or killed."""
        return status_of(self.record)

    @property
    def hardware(self) -> str:
        """The machines that the shown trainings ran on, else the driver's."""
        made = [stretch for model in self.models.values() for stretch in model.made]
        return (
            "; ".join(dict.fromkeys(machine for stretch in made for machine in stretch["hardware"]))
            or (self.record["hardware"])
        )

    @property
    def bad_samples(self) -> BadSamplesRecord:
        """The bad samples that the run left out; a run that is not finished has not counted them."""
        return BadSamplesRecord(**self.record.get("bad_samples", {"count": 0, "first": []}))

    @property
    def class_counts(self) -> np.ndarray | None:
        """Training images [C] of every class, validation left out; None in a run made before they were recorded."""
        counts = self.record.get("class_counts")
        return np.array(counts) if counts else None

    @property
    def class_groups(self) -> dict[str, np.ndarray]:
        """The groups of classes that accuracy is told by, if the set is long-tailed (metrics.reported_groups)."""
        return {} if self.class_counts is None else reported_groups(self.class_counts)

    @property
    def evaluated(self) -> list[tuple[ModelRun, Evaluation]]:
        """The models that have been evaluated, each with its evaluation."""
        return [(model, model.evaluation) for model in self.models.values() if model.evaluation]


def _methods(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Label -> settings of the method, for a job of either kind."""
    return {job["method"]["name"]: job["method"]} if job.get("method") else job["methods"]


def _read_job(path: Path) -> tuple[str, dict[str, Any]]:
    """The resolved job as text and as plain values."""
    try:
        text = path.read_text(encoding="utf-8")
        job = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(job, dict) or not job.get("name"):
        raise UserError(f"{path}: holds no job any more; copy the job file that the run was begun with to that place")
    return text, job


def _read_log(path: Path) -> list[dict[str, Any]]:
    """One record a line; a last line that a killed writer cut short is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def _read_step(folder: Path) -> StepRecord:
    done = _read_json(folder / "done.json")
    return StepRecord(
        folder=folder,
        values=_read_json(folder / "result.json")["values"],
        seconds=done["seconds"],
        finished=done["finished"],
    )


def _read_evaluation(folder: Path) -> Evaluation:
    predictions = _read_arrays(folder / "predictions.npz")
    about = _read_json(folder / "evaluation.json")
    wall, summed = about["training"]["wall_seconds"], about["training"]["summed_expert_seconds"]
    prefix = "log_probs_top"
    return Evaluation(
        labels=predictions["labels"],
        log_probs=predictions["log_probs"],
        gate=predictions.get("gate"),
        choices=predictions.get("experts_argmax"),
        divergence=predictions.get("experts_divergence"),
        top_k={int(k.removeprefix(prefix)): value for k, value in predictions.items() if k.startswith(prefix)},
        latency=about["latency"],
        chosen=predictions.get("chosen_argmax"),
        chosen_epoch=about["chosen"]["epoch"] if "chosen" in about else None,
        train_seconds=wall,
        # A model trained in one piece is its own sum: so the paper counts its dense model.
        train_seconds_summed=wall if summed is None else summed,
        labels_used=about["labels_used"],
        parameters=about["parameters"],
        tsne=_read_arrays_if_there(folder / "tsne.npz"),
        grad_cam=_read_arrays_if_there(folder / "grad_cam.npz"),
    )


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the job again with --resume") from None


def _read_arrays_if_there(path: Path) -> dict[str, np.ndarray]:
    return _read_arrays(path) if path.is_file() else {}


def _read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays called `names` of an .npz file, or all of them where none is named."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the job again with --resume") from None
