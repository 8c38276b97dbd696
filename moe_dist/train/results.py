"""Results of a pipeline's steps in the run directory: written whole or not at all, read back without pickle.

steps/<name>/result.json (values), arrays.npz (arrays) and done.json (fingerprint of what went in, seconds). done.json
is renamed into place last, so that a step without it counts as not done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.files import read_json, whole_file, write_json
from moe_dist.methods.base import StepResult


def save_result(folder: Path, result: StepResult, fingerprint: str, seconds: float) -> None:
    """Write a step's result; the folder says it is done only when all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "result.json", {"values": result.values})
    with whole_file(folder / "arrays.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **result.arrays)
    write_json(folder / "done.json", {"fingerprint": fingerprint, "seconds": seconds, "finished": time.time()})


def done(folder: Path) -> dict[str, Any] | None:
    """What done.json says, or None where the step is not done."""
    return read_json(folder / "done.json")


def load_result(folder: Path) -> StepResult:
    """A finished step's result."""
    values = json.loads((folder / "result.json").read_text())["values"]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return StepResult(values, dict(arrays))


class Results(Mapping[str, StepResult]):
    """The finished steps under a folder, by name; each is read when it is asked for and then kept."""

    def __init__(self, steps: Path) -> None:
        self.folder = steps
        self._read: dict[str, StepResult] = {}

    def __getitem__(self, name: str) -> StepResult:
        if name not in self._read:
            if done(self.folder / name) is None:
                raise KeyError(name)
            self._read[name] = load_result(self.folder / name)
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (folder.name for folder in sorted(self.folder.glob("*")) if done(folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)
