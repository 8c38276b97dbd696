"""The log of a training: metrics.jsonl and TensorBoard files, written by rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from moe_dist.files import read_json_lines, write_text

METRICS = "metrics.jsonl"


class Log(Protocol):
    """What a training tells while it runs."""

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """Tell `values` by name, and facts about them. kind: step, refresh or epoch."""

    def close(self) -> None:
        """The training has ended."""


class TrainingLog:
    """Writes a training's numbers to folder/metrics.jsonl, one JSON object a line, and to folder/tensorboard.

    Lines after `restored_step` are removed when the log is opened, because those steps are repeated. So a resumed run
    leaves the same lines as an uninterrupted one, except for times and rates.
    """

    def __init__(self, folder: Path, rank: int, restored_step: int) -> None:
        self._file = None
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            path = folder / METRICS
            kept = [line for line in read_log(folder) if line["step"] <= restored_step] if restored_step else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=restored_step + 1)

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """Write one line. `values` also go to TensorBoard, as <kind>/<name>; `facts` only to the file."""
        if self._file is None:
            return
        line = {"time": time.time(), "kind": kind, "stage": stage, "epoch": epoch, "step": step, **values, **facts}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close the file and TensorBoard's writer."""
        if self._file is not None:
            self._file.close()
            self._board.close()


TAIL_BYTES = 64 * 2**10
"""More than the longest line of a metrics.jsonl: the line of an epoch with 100 experts has 5 KiB."""


def read_log(training: Path) -> list[dict[str, Any]]:
    """The records of a training's log; none before training."""
    return read_json_lines(training / METRICS)


def last_metrics(path: Path) -> dict | None:
    """The last whole line of a metrics.jsonl, or None."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"}"):
            with contextlib.suppress(ValueError):  # a power failure can leave zeros in a line
                return json.loads(line)
    return None
