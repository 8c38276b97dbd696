"""metrics.jsonl and TensorBoard: what one training tells while it runs. Only rank 0 writes."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

from moe_dist.files import write_text


class Log(Protocol):
    """What a training tells while it runs."""

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """Tell `values` by name, and facts about them. kind: step, refresh or epoch."""

    def close(self) -> None:
        """The training has ended."""


class TrainingLog:
    """Appends one JSON object a line to folder/metrics.jsonl and the same numbers to folder/tensorboard.

    Lines after the restored step belong to work that is done again; they are dropped, so that a resumed run leaves the
    file an unbroken one leaves (but for times and rates).
    """

    def __init__(self, folder: Path, rank: int, restored_step: int) -> None:
        self._file = None
        if rank == 0:
            from torch.utils.tensorboard import SummaryWriter

            folder.mkdir(parents=True, exist_ok=True)
            path = folder / "metrics.jsonl"
            kept = [line for line in _lines(path) if line["step"] <= restored_step] if restored_step else []
            write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=restored_step + 1)

    def write(self, kind: str, stage: str, epoch: int, step: int, values: dict[str, float], **facts: Any) -> None:
        """One line: `values` also go to TensorBoard, as <kind>/<name>; `facts` only into the file."""
        if self._file is None:
            return
        line = {"time": time.time(), "kind": kind, "stage": stage, "epoch": epoch, "step": step, **values, **facts}
        self._file.write(json.dumps(line) + "\n")
        for name, value in values.items():
            self._board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; a line cut off by a kill is left out."""
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text().splitlines(keepends=True) if text.endswith("}\n")]


TAIL_BYTES = 64 * 2**10
"""Longer than any line of a metrics.jsonl: an epoch of 100 experts takes 5 KiB."""


def last_metrics(path: Path) -> dict | None:
    """The newest whole line of a metrics.jsonl, or None."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines):
        if line.startswith(b"{") and line.endswith(b"}"):
            with contextlib.suppress(ValueError):  # a power cut may leave zeros inside a line
                return json.loads(line)
    return None
