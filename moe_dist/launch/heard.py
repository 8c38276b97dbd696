"""What a driver hears of a training while it runs: from its files here or, of a run at a URL, from those there."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from moe_dist.data.storage.store import join, local_file
from moe_dist.errors import UserError
from moe_dist.files import read_json_lines
from moe_dist.record.mirror import EVERY_SECONDS, ONCE
from moe_dist.record.restarts import ATTEMPTS, FAULTS
from moe_dist.train.log import METRICS, last_metrics
from moe_dist.train.task import TrainingTask

T = TypeVar("T")


class Heard:
    """The files of one training in a folder.

    url: where rank 0, which may be on another node, pushes its own of them; they are then read there every few seconds.
    """

    def __init__(self, training: Path, url: str | None = None) -> None:
        self._training, self._url = training, url
        self._next: dict[str, float] = {}
        self._last: dict[str, Any] = {}

    @staticmethod
    def of(task: TrainingTask) -> Heard:
        """That of a task."""
        return Heard(task.folder, task.url and join(task.url, task.in_run(task.folder)))

    def newest(self) -> dict[str, Any] | None:
        """The last line of the log, or None."""
        return self._of_rank_0(METRICS, last_metrics)

    def attempts(self) -> list[dict[str, Any]]:
        """What rank 0 told of attempts."""
        return self._of_rank_0(ATTEMPTS, read_json_lines) or []

    def faults(self) -> list[dict[str, Any]]:
        """The faults that the launcher noted, which is on the driver's own node."""
        return read_json_lines(self._training / FAULTS)

    def _of_rank_0(self, name: str, read: Callable[[Path], T]) -> T | None:
        if self._url is None:
            return read(self._training / name)
        if time.monotonic() >= self._next.get(name, 0.0):
            self._next[name] = time.monotonic() + EVERY_SECONDS
            with contextlib.suppress(UserError), local_file(join(self._url, name), ONCE) as copy:
                self._last[name] = read(copy)
        return self._last.get(name)
