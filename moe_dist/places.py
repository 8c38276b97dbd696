"""Where things are: runs, caches, and the parts of a run directory.

    <run>/job.yaml, run.json, lock, metrics.json, results.md, report.html, figures/, bad_samples/
    <run>/<label>/current.json                          which of the following the report shows
    <run>/<label>/steps/<name>/<fingerprint>/           what a step left
    <run>/<label>/trainings/<fingerprint>/              settings.json, metrics.jsonl, tensorboard/, checkpoints/,
                                                        training.json when it is done, evaluations/<fingerprint>/
    <run>/<label>/search/                               journals and results of a search

A fingerprint is over all that a result depends on, so a changed setting makes a new folder beside the old one, and
nothing that was trained is written over. Its first twelve digits name the folder.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_dist.files import read_json, write_json

RUNS = Path("runs")
LAYOUT = 2
"""The layout above; 1 had one training a label, written over by the next."""
CURRENT = "current.json"
RECORD = "run.json"
RUNNING, FINISHED, FAILED, STOPPED, KILLED = "running", "finished", "failed", "stopped", "killed"
"""A start's status: stopped by a signal that it could answer (SIGTERM, Ctrl-C), killed by one that it could not."""


def cache_folder() -> Path:
    """Where shards and decoded images that several runs share are kept: MOE_DIST_CACHE, else runs/cache."""
    return Path(os.environ.get("MOE_DIST_CACHE", RUNS / "cache")).absolute()


def short_name(fingerprint: str) -> str:
    """What a folder of this fingerprint is called."""
    return fingerprint[:12]


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model (one label) in a run directory."""

    path: Path

    def step(self, name: str, fingerprint: str) -> Path:
        """Where the step `name` leaves its result."""
        return self.path / "steps" / name / short_name(fingerprint)

    def training(self, fingerprint: str) -> Path:
        """Where a training leaves its log, its checkpoints and its evaluations."""
        return self.path / "trainings" / short_name(fingerprint)

    def point_at(self, current: Current) -> None:
        """Let the report show these folders."""
        content = {
            "steps": {name: folder.name for name, folder in current.steps.items()},
            "training": current.training.name if current.training else None,
            "earlier": {name: folder.name for name, folder in current.earlier.items()},
            "evaluation": current.evaluation.name if current.evaluation else None,
        }
        if read_json(self.path / CURRENT) != content:
            write_json(self.path / CURRENT, content)

    def current(self) -> Current:
        """What the report shows: nothing before a run has said it; a model of layout 1 shows what lies there."""
        content = read_json(self.path / CURRENT)
        if content is None:
            return Current({}) if (self.path / "trainings").is_dir() else self._current_of_layout_1()
        training = self.training(content["training"]) if content["training"] else None
        evaluation = evaluation_folder(training, content["evaluation"]) if training and content["evaluation"] else None
        steps = {name: self.step(name, fingerprint) for name, fingerprint in content["steps"].items()}
        earlier = {name: self.training(fingerprint) for name, fingerprint in content.get("earlier", {}).items()}
        return Current(steps, training, evaluation, earlier)

    def _current_of_layout_1(self) -> Current:
        evaluation = self.path / "evaluation"
        steps = {path.parent.name: path.parent for path in sorted(self.path.glob("steps/*/done.json"))}
        return Current(steps, self.path, evaluation if evaluation.is_dir() else None)


@dataclass(frozen=True)
class Current:
    """The folders of a model that its report shows.

    Its steps by name; its training and that one's evaluation, if any; trainings before that, by their first stage.
    """

    steps: Mapping[str, Path]
    training: Path | None = None
    evaluation: Path | None = None
    earlier: Mapping[str, Path] = field(default_factory=dict)


def evaluation_folder(training: Path, fingerprint: str) -> Path:
    """Where an evaluation of the training in the folder `training` is kept."""
    return training / "evaluations" / short_name(fingerprint)


def status_of(record: Mapping[str, Any]) -> str:
    """A run's status, given its run.json: one that is said to be running and whose process is gone was killed.

    Only a process of this machine can be looked for; of another one's the record is all there is to go by.
    """
    starts = record.get("starts")
    if record["status"] != RUNNING or not starts or starts[-1]["host"] != socket.gethostname():
        return record["status"]
    return RUNNING if _lives(starts[-1]["process"]) else KILLED


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
