"""The places of runs and caches, and the layout of a run directory.

    <run>/job.yaml, run.json, lock, metrics.json, results.md, report.html, figures/, bad_samples/, sample_images.npz
    <run>/<model>/current.json                          which of the following folders the report shows
    <run>/<model>/steps/<name>/<fingerprint>/           the result of a step
    <run>/<model>/trainings/<fingerprint>/              settings.json, metrics.jsonl, attempts.jsonl, faults.jsonl,
                                                        tensorboard/, checkpoints/, training.json when it is
                                                        done, evaluations/<fingerprint>/
    <run>/<model>/search/                               journals and results of a search

A fingerprint is a hash of all that a result depends on. So a changed setting makes a new folder beside the old one, and
no result is overwritten. The first twelve digits of the fingerprint name the folder.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_dist.files import read_json, write_json
from moe_dist.paths import is_url

RUNS = Path("runs")
NODE_CACHE = "MOE_DIST_NODE_CACHE"
MLFLOW = "MLFLOW_TRACKING_URI"
"""MLflow's own variable, which says what is told of runs."""
LAYOUT = 2
"""Version of this layout. In version 1 a model had one training, which the next one overwrote."""
NAME_DIGITS = 12
"""Number of a fingerprint's digits that name its folder."""
CURRENT = "current.json"
RECORD = "run.json"
SAMPLE_IMAGES = "sample_images.npz"
RUNNING, FINISHED, FAILED, STOPPED, KILLED = "running", "finished", "failed", "stopped", "killed"
"""The status of a start. Stopped: by SIGTERM or Ctrl-C, which it could handle. Killed: by another signal."""


def shared_cache() -> str:
    """The folder or URL of what runs share, on every node: shards that they build. MOE_DIST_CACHE, or runs/cache."""
    place = os.environ.get("MOE_DIST_CACHE", str(RUNS / "cache"))
    return place if is_url(place) else str(Path(place).absolute())


def cache_folder() -> Path:
    """The folder of what this node keeps: decoded images, fetched shards, working folders of runs at a URL.

    MOE_DIST_NODE_CACHE; or the shared cache, if it is a folder; or ~/.cache/moe_dist.
    """
    own, shared = os.environ.get(NODE_CACHE), shared_cache()
    if own is None:
        return Path.home() / ".cache" / "moe_dist" if is_url(shared) else Path(shared)
    return Path(own).absolute()


@dataclass(frozen=True)
class ModelFolder:
    """The folder of one model in a run directory."""

    path: Path

    def step(self, name: str, fingerprint: str) -> Path:
        """The folder of a step's result."""
        return self.path / "steps" / name / fingerprint[:NAME_DIGITS]

    def training(self, fingerprint: str) -> Path:
        """The folder of a training: its log, checkpoints and evaluations."""
        return self.path / "trainings" / fingerprint[:NAME_DIGITS]

    def point_at(self, current: Current) -> None:
        """Let the report show these folders. current.json is only written if it changes."""
        content = {
            "steps": {name: folder.name for name, folder in current.steps.items()},
            "training": current.training.name if current.training else None,
            "earlier": {name: folder.name for name, folder in current.earlier.items()},
            "evaluation": current.evaluation.name if current.evaluation else None,
        }
        if read_json(self.path / CURRENT) != content:
            write_json(self.path / CURRENT, content)

    def current(self) -> Current:
        """The folders that the report shows; none before a run has set them. In layout 1, all folders are shown."""
        content = read_json(self.path / CURRENT)
        if content is None:
            if (self.path / "trainings").is_dir():
                return Current({})
            finished = {path.parent.name: path.parent for path in sorted(self.path.glob("steps/*/done.json"))}
            evaluated = self.path / "evaluation"
            return Current(finished, self.path, evaluated if evaluated.is_dir() else None)
        training = self.training(content["training"]) if content["training"] else None
        evaluation = evaluation_folder(training, content["evaluation"]) if training and content["evaluation"] else None
        steps = {name: self.step(name, fingerprint) for name, fingerprint in content["steps"].items()}
        earlier = {name: self.training(fingerprint) for name, fingerprint in content.get("earlier", {}).items()}
        return Current(steps, training, evaluation, earlier)


@dataclass(frozen=True)
class Current:
    """The folders of a model that the report shows.

    steps: by the step's name. training: the model's own training, if any, and evaluation: that training's. earlier:
    trainings of networks before, by the name of their first stage.
    """

    steps: Mapping[str, Path]
    training: Path | None = None
    evaluation: Path | None = None
    earlier: Mapping[str, Path] = field(default_factory=dict)


def evaluation_folder(training: Path, fingerprint: str) -> Path:
    """The folder of an evaluation, in the folder of its training."""
    return training / "evaluations" / fingerprint[:NAME_DIGITS]


def status_of(record: Mapping[str, Any]) -> str:
    """The status of a run, given its run.json. If it is "running" and its process has ended, the run was killed.

    Processes of other machines cannot be checked; for these, the recorded status is returned.
    """
    starts = record.get("starts")
    if record["status"] != RUNNING or not starts or starts[-1]["host"] != socket.gethostname():
        return record["status"]
    try:
        os.kill(starts[-1]["process"], 0)
    except ProcessLookupError:
        return KILLED
    except PermissionError:  # the process is alive and belongs to another user
        pass
    return RUNNING
