"""Where the parts of a run lie that a test looks into."""

from __future__ import annotations

import json
import os
from fnmatch import filter as named
from pathlib import Path
from typing import Any

from moe_dist.places import ModelFolder


def files_below(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder in which a process is at work: `rglob` raises where a folder goes while it looks."""
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in named(names, pattern)]


def training_of(model: Path) -> Path:
    """The training that the report of the model in `model` (<run>/<model>) shows."""
    training = ModelFolder(model).current().training
    assert training is not None
    return training


def checkpoints_of(model: Path) -> Path:
    """Its checkpoints' folder."""
    return training_of(model) / "checkpoints"


def evaluation_of(model: Path) -> Path:
    """Its evaluation."""
    evaluation = ModelFolder(model).current().evaluation
    assert evaluation is not None
    return evaluation


def step_of(model: Path, name: str) -> Path:
    """What its step `name` left."""
    return ModelFolder(model).current().steps[name]


def log_of(model: Path) -> list[dict[str, Any]]:
    """The lines of its training's log."""
    return [json.loads(line) for line in (training_of(model) / "metrics.jsonl").read_text().splitlines()]
