"""A run directory as the report reads it. Nothing in it is unpickled."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.errors import UserError
from moe_dist.files import read_json
from moe_dist.methods.registry import method_report
from moe_dist.methods.reporting import MethodReport
from moe_dist.metrics.calibration import tempered
from moe_dist.metrics.classification import ClassificationMetrics, classification_metrics, reported_groups
from moe_dist.metrics.clustering import ClusteringMetrics, clustering_metrics
from moe_dist.places import SAMPLE_IMAGES, ModelFolder, status_of
from moe_dist.record.restarts import Restart, saves
from moe_dist.report.paper import PaperTable, paper_table
from moe_dist.train.log import read_log
from moe_dist.yaml_core import load_run_yaml


@dataclass(frozen=True)
class StepRecord:
    """A finished step: its folder, its numbers, how many seconds it took and when it ended (seconds since 1970)."""

    folder: Path
    values: Mapping[str, Any]
    seconds: float
    finished: float

    def array(self, name: str) -> np.ndarray:
        """One of the step's arrays. Only this one is read: another may be a gigabyte of features."""
        return _read_arrays(self.folder / "arrays.npz", name)[name]


@dataclass(frozen=True)
class BadSamplesRecord:
    """The number of samples that a run could not use, and a sentence for each of the first ones."""

    count: int
    first: list[str]


@dataclass(frozen=True)
class Evaluation:
    """A trained model's predictions on the test split, and what else its evaluation recorded.

    Letters: N test images, V images that are shown, C classes, E experts.
    """

    labels: np.ndarray
    log_probs: np.ndarray
    """The true classes [N], and the prediction with all experts [N, C]."""
    predicts: str
    """What the C are: `classes`, or `clusters`, which are compared with classes up to their names."""
    gates: Mapping[str, np.ndarray]
    """Weights [N, E] of each gate's experts, by the gate's name; "" where there is one gate."""
    choices: np.ndarray | None
    divergence: np.ndarray | None
    """The class that each expert predicts by itself [N, E], and how far these predictions lie apart [N] (metrics'
    pairwise_divergence); None if experts do not predict classes."""
    top_k: Mapping[int, np.ndarray]
    """k -> log_probs [N, C] of the k experts of largest gate weight."""
    latency: Mapping[str, Mapping[str, float]]
    """By experts, "all" or "top<k>": median_ms, p99_ms, mean_ms, images."""
    chosen: np.ndarray | None
    chosen_epoch: int | None
    """The classes [N] that the checkpoint of the highest score on validation predicts, and its epoch in the last stage,
    counted from 1; None without a validation."""
    train_seconds: float
    train_seconds_summed: float
    """Time of the training by the wall clock, and added up over experts that were trained side by side."""
    labels_used: str
    parameters: int
    pictures: Mapping[str, Mapping[str, np.ndarray]]
    """What figures are drawn from, as evaluate/pictures.py writes it, as far as the method shows it: `tsne` (points
    [V, 2], labels [V]), `grad_cam` (images, labels, predicted, cams), and `own`, which the method's report draws."""
    temperature: float | None = None
    """What validation says that logits are to be divided by; None for clusters, and where nothing was validated."""

    @cached_property
    def right(self) -> np.ndarray:
        """Whether the likeliest class is the true one [N], of a method that predicts classes."""
        return self.log_probs.argmax(axis=1) == self.labels

    def probabilities(self, temperature: float = 1.0) -> np.ndarray:
        """The probability [N] of each image's likeliest class, with logits divided by `temperature`."""
        return np.exp(tempered(self.log_probs, temperature).max(axis=1))

    @cached_property
    def metrics(self) -> ClassificationMetrics:
        """The metrics of the prediction with all experts, of a method that predicts classes."""
        assert self.predicts == "classes"
        return classification_metrics(self.labels, self.log_probs)

    @cached_property
    def clustering(self) -> ClusteringMetrics:
        """The metrics of the clusters, of a method that predicts clusters."""
        assert self.predicts == "clusters"
        return clustering_metrics(self.log_probs.argmax(axis=1), self.labels)


class ModelRun:
    """One model of a run: its log, steps and evaluation, each read when it is asked for.

    name: the model's key in the job; settings: its method's, resolved; title: its name in tables and figures;
    paper_column: the column of the paper's table that stands beside it, if any.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], title: str, paper_column: str | None) -> None:
        self.folder = folder
        self.name = folder.name
        self._current = ModelFolder(folder).current()
        self.settings = settings
        self.title = title
        self.paper_column = paper_column

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """The records of its training's log; none before training."""
        return read_log(self._current.training) if self._current.training else []

    @cached_property
    def earlier_logs(self) -> dict[str, list[dict[str, Any]]]:
        """The records of trainings of other networks before that, by the name of their first stage."""
        return {stage: read_log(folder) for stage, folder in self._current.earlier.items()}

    @cached_property
    def made(self) -> list[dict[str, Any]]:
        """The stretches that made the finished trainings (record/provenance.py); empty in a run of layout 1."""
        trainings = [*self._current.earlier.values(), *filter(None, [self._current.training])]
        finished = filter(None, (read_json(folder / "training.json") for folder in trainings))
        return [stretch for about in finished for stretch in about.get("made", [])]

    @cached_property
    def saves(self) -> list[float]:
        """The seconds that steps waited for each checkpoint of the shown trainings; none of older runs."""
        trainings = [*self._current.earlier.values(), *filter(None, [self._current.training])]
        return [seconds for folder in trainings for seconds in saves(folder)]

    @cached_property
    def steps(self) -> dict[str, StepRecord]:
        """The finished steps by name, in the order in which they were finished."""
        steps = {}
        for name, folder in self._current.steps.items():
            if done := read_json(folder / "done.json"):
                values = read_result(folder / "result.json")["values"]
                steps[name] = StepRecord(folder, values, done["seconds"], done["finished"])
        return dict(sorted(steps.items(), key=lambda item: item[1].finished))

    @cached_property
    def evaluation(self) -> Evaluation | None:
        """The evaluation on the test split; None before there is one."""
        folder = self._current.evaluation
        return _read_evaluation(folder) if folder and (folder / "evaluation.json").is_file() else None


class RunDirectory:
    """All that one run left. Raises UserError if `path` is not a run directory.

    job: the resolved job as plain values; record: run.json (command, data, split, hardware, time); paper: the paper's
    table that the job asks for, if any; models: by name, in the job's order.
    """

    def __init__(self, path: Path) -> None:
        for name in ("job.yaml", "run.json"):
            if not (path / name).is_file():
                raise UserError(
                    f"{path}: not a run directory (it has no {name}); give the folder that `moe-dist run` printed"
                )
        self.path = path
        self.job_text, self.job = _read_job(path / "job.yaml")
        self.record: dict[str, Any] = read_result(path / "run.json")
        key = self.job.get("paper_table")
        self.paper: PaperTable | None = paper_table(key) if key else None
        job = self.job
        methods = {job["method"]["name"]: job["method"]} if job.get("method") else job["methods"]
        titles = self.paper.titles if self.paper else {}
        self.models: dict[str, ModelRun] = {}
        for name, settings in methods.items():
            # A column of the paper belongs to the model of its name. Any other model keeps its own title, and stands
            # beside the column of its method unless another model of the job is named as the method.
            columns = (name,) if settings["name"] in methods else (name, settings["name"])
            column = next((column for column in columns if column in titles), None)
            self.models[name] = ModelRun(path / name, settings, titles.get(name, name).replace("_", " "), column)

    @property
    def status(self) -> str:
        """The status of the run: running, finished, failed, stopped (by a signal) or killed."""
        return status_of(self.record)

    @property
    def hardware(self) -> str:
        """The machines that the shown trainings ran on; the driver's if none was recorded."""
        made = [stretch for model in self.models.values() for stretch in model.made]
        machines = dict.fromkeys(machine for stretch in made for machine in stretch["hardware"])
        return "; ".join(machines) or self.record["hardware"]

    @property
    def test_split(self) -> str:
        """The data of a figure of test images, and how many there are."""
        return f"{self.record['dataset']}, test split, n = {self.record['counts']['test']:,}"

    @property
    def bad_samples(self) -> BadSamplesRecord:
        """The bad samples that the run left out; they are counted when it is finished."""
        return BadSamplesRecord(**self.record.get("bad_samples", {"count": 0, "first": []}))

    @property
    def restarts(self) -> list[Restart]:
        """What was started again because a worker or a node was lost, in all starts of the run."""
        return [restart for start in self.record.get("starts", []) for restart in start.get("restarts", [])]

    @property
    def notices(self) -> list[str]:
        """What the run said of its data and settings before it began; none in a run from before they were recorded."""
        return list(self.record.get("notices", []))

    @property
    def class_counts(self) -> np.ndarray | None:
        """The training images [C] of every class, without validation; None in a run from before they were recorded."""
        counts = self.record.get("class_counts")
        return np.array(counts) if counts else None

    @cached_property
    def sample_images(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Some training images [V, 3, S, S] uint8 and their classes [V]; None where the run kept none."""
        path = self.path / SAMPLE_IMAGES
        if not path.is_file():
            return None
        arrays = _read_arrays(path)
        return arrays["images"], arrays["labels"]

    @property
    def class_groups(self) -> dict[str, np.ndarray]:
        """The groups of classes that accuracy is given by (reported_groups); none unless the set is long-tailed."""
        return {} if self.class_counts is None else reported_groups(self.class_counts)

    @property
    def evaluated(self) -> list[tuple[ModelRun, Evaluation]]:
        """The models that have been evaluated, each with its evaluation."""
        return [(model, model.evaluation) for model in self.models.values() if model.evaluation]

    @property
    def classifying(self) -> list[tuple[ModelRun, Evaluation]]:
        """Those of the evaluated models that predict classes."""
        return [(model, evaluation) for model, evaluation in self.evaluated if evaluation.predicts == "classes"]

    def reports(self) -> list[tuple[MethodReport, list[ModelRun]]]:
        """The methods' own parts of the report, each with the models of its methods, in the job's order."""
        found: dict[MethodReport, list[ModelRun]] = {}
        for model in self.models.values():
            if report := method_report(model.settings["name"]):
                found.setdefault(report, []).append(model)
        return list(found.items())


def _read_job(path: Path) -> tuple[str, dict[str, Any]]:
    """The resolved job as text and as plain values. Raises UserError if the file holds no job."""
    try:
        text = path.read_text(encoding="utf-8")
        job = load_run_yaml(text)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(job, dict) or not job.get("name"):
        raise UserError(f"{path}: holds no job any more; copy the job file that the run was begun with to that place")
    if "title" not in job:  # not the resolved job, but the file that a user copied there
        from moe_dist.job import dump_job, parse_job  # imports torch, without which a report is made otherwise

        resolved = parse_job(job, str(path), path.absolute().parent)
        return dump_job(resolved), resolved.model_dump(mode="json")
    return text, job


def _read_evaluation(folder: Path) -> Evaluation:
    """The evaluation in `folder`. Raises UserError if one of its files is damaged."""
    predictions = _read_arrays(folder / "predictions.npz")
    about = read_result(folder / "evaluation.json")
    pictures = {name: folder / f"{name}.npz" for name in ("tsne", "grad_cam", "own")}
    wall, summed = about["training"]["wall_seconds"], about["training"]["summed_expert_seconds"]
    prefix = "log_probs_top"
    return Evaluation(
        labels=predictions["labels"],
        log_probs=predictions["log_probs"],
        predicts=about.get("predicts", "classes"),
        gates={
            name.removeprefix("gate").removeprefix("."): value
            for name, value in predictions.items()
            if name == "gate" or name.startswith("gate.")
        },
        choices=predictions.get("experts_argmax"),
        divergence=predictions.get("experts_divergence"),
        top_k={int(k.removeprefix(prefix)): value for k, value in predictions.items() if k.startswith(prefix)},
        latency=about["latency"],
        chosen=predictions.get("chosen_argmax"),
        chosen_epoch=about["chosen"]["epoch"] if "chosen" in about else None,
        train_seconds=wall,
        # The sum of a model that was trained in one piece is its own time: the paper counts its dense model so.
        train_seconds_summed=wall if summed is None else summed,
        labels_used=about["labels_used"],
        parameters=about["parameters"],
        temperature=(about.get("calibration", {}).get(about.get("evaluated")) or {}).get("temperature"),
        pictures={name: _read_arrays(path) for name, path in pictures.items() if path.is_file()},
    )


def read_result(path: Path) -> Any:
    """The content of a JSON file of the run. Raises UserError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the job again with --resume") from None


def _read_arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The arrays called `names` of an .npz file, or all of them if none is named. Raises UserError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in names or arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); run the job again with --resume") from None
