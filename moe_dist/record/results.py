"""The results of steps in a run directory: result.json (values), arrays.npz (arrays) and done.json.

done.json (fingerprint, seconds) is written last: without it the step is not done. Nothing is pickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.files import read_json, whole_file, write_json
from moe_dist.methods.phases import StepResult


def save_result(folder: Path, result: StepResult, fingerprint: str, seconds: float, start: int) -> None:
    """Write a step's result into `folder`. start: the number of the run's start that made it."""
    (folder / "done.json").unlink(missing_ok=True)
    write_json(folder / "result.json", {"values": result.values})
    with whole_file(folder / "arrays.npz") as partial, partial.open("wb") as file:
        np.savez(file, allow_pickle=False, **result.arrays)
    about = {"fingerprint": fingerprint, "seconds": seconds, "finished": time.time(), "start": start}
    write_json(folder / "done.json", about | {"array_bytes": (folder / "arrays.npz").stat().st_size})


def done(folder: Path) -> dict[str, Any] | None:
    """The content of done.json; None if the step is not done, or a power failure has emptied one of its files."""
    finished, arrays = read_json(folder / "done.json"), folder / "arrays.npz"
    if not finished or read_json(folder / "result.json") is None or not arrays.is_file():
        return None
    return finished if finished["array_bytes"] == arrays.stat().st_size else None


def load_result(folder: Path) -> StepResult:
    """The result of a finished step."""
    values = json.loads((folder / "result.json").read_text())["values"]
    with np.load(folder / "arrays.npz", allow_pickle=False) as arrays:
        return StepResult(values, dict(arrays))


class Results(Mapping[str, StepResult]):
    """The results of the finished steps among those in `folders`, by name. Each is read once, when it is first used."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders
        self._read: dict[str, StepResult] = {}

    def __getitem__(self, name: str) -> StepResult:
        if name not in self._read:
            if name not in self.folders or done(self.folders[name]) is None:
                raise KeyError(name)
            self._read[name] = load_result(self.folders[name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, folder in self.folders.items() if done(folder))

    def __len__(self) -> int:
        return sum(1 for _ in self)
