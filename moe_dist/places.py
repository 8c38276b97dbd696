"""Where things are: runs, caches, and the parts of a run directory.

    <run>/job.yaml, run.json, lock, metrics.json, results.md, report.html, figures/, bad_samples/
    <run>/<model>/current.json                          which of the following folders the report shows
    <run>/<model>/steps/<name>/<fingerprint>/           the result of a step
    <run>/<model>/trainings/<fingerprint>/              settings.json, metrics.jsonl, tensorboard/, checkpoints/,
                                                        training.json when it is done, evaluations/<fingerprint>/
    <run>/<model>/search/                               journals and results of a search

A fingerprint is a hash of all that a result depends on, so a changed setting makes a new folder beside the old one, and
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
"""Version of the layout above; version 1 had one training a model, written over by the next."""
NAME_DIGITS = 12
"""Number of a fingerprint's digits that name its folder."""
CURRENT = "current.json"
RECORD = "run.json"
RUNNING, FINISHED, FAILED, STOPPED, KILLED = "running", "finished", "failed", "stopped", "killed"
"""Status of a start: stopped by a signal that it could answer (SIGTERM, Ctrl-C), killed by one that it could not."""


def cache_folder() -> Path:
    """The folder of shards and decoded images that several runs share: MOE_DIST_CACHE, else runs/cache."""
    return Path(os.environ.get("MOE_DIST_CACHE", RUNS / "cache")).absolute()


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model in a run directory."""

    path: Path

    def step(self, name: str, fingerprint: str) -> Path:
        """The folder of the result of the step `name`."""
        return self.path / "steps" / name / fingerprint[:NAME_DIGITS]

    def training(self, fingerprint: str) -> Path:
        """The folder of a training's log, checkpoints and evaluations."""
        return self.path / "trainings" / fingerprint[:NAME_DIGITS]

    def point_at(self, current: Current) -> None:
        """Make these the folders that the report shows; current.json is written only where it changes."""
        content = {
            "steps": {name: folder.name for name, folder in current.steps.items()},
            "training": current.training.name if current.training else None,
            "earlier": {name: folder.name for name, folder in current.earlier.items()},
            "evaluation": current.evaluation.name if current.evaluation else None,
        }
        if read_json(self.path / CURRENT) != content:
            write_json(self.path / CURRENT, content)

    def current(self) -> Current:
        """The folders that the report shows: none before a run has named them, all that lie there in layout 1."""
        content = read_json(self.path / CURRENT)
        if content is None:
            return Current({}) if (self.path / "trainings").is_dir() else self._current_of_layout_1()
        training = self.training(content["training"]) if content["training"] else None
        evaluation = evaluation_folder(training, content["evaluation"]) if training and content["evaluation"] else None
        steps = {name: self.step(name, fingerprint) for name, fingerprint in content["steps"].items()}
        earlier = {name: self.training(fingerprint) for name, fingerprint in content.get("earlier", {}).items()}
        return Current(steps, training, evaluation, earlier)

    def _current_of_layout_1(self) -> Current:
        steps = {path.parent.name: path.parent for path in sorted(self.path.glob("steps/*/done.json"))}
        evaluation = self.path / "evaluation"
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
    """The folder of an evaluation of the training in the folder `training`."""
    return training / "evaluations" / fingerprint[:NAME_DIGITS]


def status_of(record: Mapping[str, Any]) -> str:
    """The status of a run, given its run.json: a run that is recorded as running was killed if its process is gone.

    Only a process of this machine can be looked for; for any other one the record is all there is to go by.
    """
    starts = record.get("starts")
    if record["status"] != RUNNING or not starts or starts[-1]["host"] != socket.gethostname():
        return record["status"]
    try:
        os.kill(starts[-1]["process"], 0)
    except ProcessLookupError:
        return KILLED
    except PermissionError:  # it lives, and belongs to another user
        pass
    return RUNNING
