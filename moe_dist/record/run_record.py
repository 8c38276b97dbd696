"""Writes run.json: at the top what made the shown result, below it a list of all starts of the run."""

from __future__ import annotations

import os
import shlex
import socket
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from moe_dist import __version__
from moe_dist.data.opened.opened import OpenedData
from moe_dist.errors import UserError
from moe_dist.files import read_json, write_json
from moe_dist.job import Job
from moe_dist.places import FAILED, FINISHED, KILLED, LAYOUT, RECORD, RUNNING, STOPPED, ModelFolder
from moe_dist.record.provenance import code_version, hardware
from moe_dist.record.restarts import Restart

OF_A_START = frozenset({"status", "time", "seconds", "worked", "reason", "process", "host", "restarts"})
"""The fields of a start's entry that are not copied to the top."""


class RunRecord:
    """The record of a run, run.json in the run directory `run`, written by its only driver, this process.

    number: this start's number in the list of starts; each result has the number of the start that made it. A start
    that makes nothing is added to the list and does not change the top.
    """

    def __init__(self, run: Path, job: Job, data: OpenedData, launcher: str, notices: Sequence[str] = ()) -> None:
        """notices: what was said of the data and the settings before."""
        self._run, self._models = run, list(job.models)
        self._content: dict[str, Any] = read_json(run / RECORD) or {"layout": LAYOUT, "status": RUNNING, "starts": []}
        self._starts: list[dict[str, Any]] = self._content.pop("starts")
        for start in self._starts:
            if start["status"] == RUNNING:  # its process has ended, because this one holds the lock
                written = [run / RECORD, *run.glob("*/*/*/*"), *run.glob("*/*/*/*/*")]
                lasted = max(path.stat().st_mtime for path in written) - start["time"]
                start |= {"status": KILLED, "seconds": max(0.0, lasted)}  # below 0 where the clock was set back
        self.number = len(self._starts)
        self._began = time.monotonic()  # seconds are counted by a clock that nobody sets
        self._start: dict[str, Any] = {"status": RUNNING, "time": time.time(), "seconds": None, "worked": False}
        self._start |= _circumstances(job, launcher)
        self._starts.append(self._start)
        self._data = _facts(job, data) | {"notices": list(notices)}
        self._write({} if self.number else self._shown([self.number]))

    @property
    def worked(self) -> bool:
        """Whether this start has made a result."""
        return self._start["worked"]

    def work_begins(self) -> None:
        """Record that this start makes a result, or a part of one: the top describes this start from now on."""
        if not self._start["worked"]:
            self._start["worked"] = True
            self._write({"status": RUNNING} | self._shown([self.number]))

    def survived(self, restart: Restart) -> None:
        """Record a restart of this start; given again, what became known of it since."""
        restarts = self._start.setdefault("restarts", [])
        if not any(each is restart for each in restarts):
            restarts.append(restart)
        self._write({})

    @contextmanager
    def ending(self) -> Iterator[dict[str, Any]]:
        """Write how the start ended, which is the block, together with what it puts into the given dictionary."""
        further: dict[str, Any] = {}
        with self.failing():
            yield further
        parts = shown_parts(self._run, self._models)
        made_by = sorted({part.start for part in parts})
        seconds = {"seconds": sum(part.seconds for part in parts)}
        self._end(FINISHED, self._shown(made_by or [self.number]) | seconds | further)

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Write it at once if the block fails or is stopped.

        So it is written before Ray is shut down, which takes seconds in which the process may be killed.
        """
        try:
            yield
        except BaseException as error:
            if self._start["status"] == RUNNING:
                status = STOPPED if isinstance(error, KeyboardInterrupt) else FAILED
                self._start |= {"reason": " ".join(str(error).split()) or type(error).__name__}
                with suppress(OSError, UserError):  # the disk is full: the error that is being raised says so
                    self._end(status, self._shown([self.number]) if self._start["worked"] else {})
            raise

    def _shown(self, made_by: Sequence[int]) -> dict[str, Any]:
        """The top of the record, if these starts made the shown result: the circumstances of the last, and the data."""
        circumstances = {name: value for name, value in self._starts[made_by[-1]].items() if name not in OF_A_START}
        return {"made_by_starts": list(made_by), **circumstances, "seconds": None, **self._data}

    def _end(self, status: str, top: Mapping[str, Any]) -> None:
        self._start |= {"status": status, "seconds": time.monotonic() - self._began}
        nothing_is_shown = self._content["status"] != FINISHED
        self._write({"status": status, **top} if top or nothing_is_shown else {})

    def _write(self, top: Mapping[str, Any]) -> None:
        self._content = {"layout": LAYOUT, **self._content, **top}
        write_json(self._run / RECORD, self._content | {"starts": self._starts})


@dataclass(frozen=True)
class ShownPart:
    """A part of the shown result: the number of the start that made it, and the seconds that it took."""

    start: int
    seconds: float


def shown_parts(run: Path, models: Iterable[str]) -> list[ShownPart]:
    """The steps, trainings, evaluations and searches that a run's report shows, as far as they are done."""
    found: list[dict[str, Any] | None] = []
    for model in models:
        current = ModelFolder(run / model).current()
        found += [read_json(folder / "done.json") for folder in current.steps.values()]
        trained = read_json(current.training / "training.json") if current.training else None
        found += trained["made"] if trained else []
        for folder in current.earlier.values():
            found += (read_json(folder / "training.json") or {"made": []})["made"]
        found += [read_json(current.evaluation / "evaluation.json")] if current.evaluation else []
        found += [read_json(run / model / "search" / "results.json")]
    return [ShownPart(about["start"], about["seconds"]) for about in found if about]


def _circumstances(job: Job, launcher: str) -> dict[str, Any]:
    """How, where and by which versions the run was started."""
    return {
        "started": datetime.now().isoformat(timespec="seconds"),
        "command": shlex.join(["moe-dist", *sys.argv[1:]]),
        "hardware": hardware(),
        "launcher": launcher,
        "workers": job.workers,
        "version": __version__,
        "code": code_version(),
        "torch": torch.__version__,
        "process": os.getpid(),
        "host": socket.gethostname(),
    }


def _facts(job: Job, data: OpenedData) -> dict[str, Any]:
    """The facts about the data that belong to the figures of this run."""
    return {
        "seed": job.seed,
        "dataset": job.data.dataset,
        "split_digest": data.split_digest,
        "digests": dict(data.digests),
        "counts": {
            "train": len(data.train_samples),
            "val": len(data.val_samples),
            "test": len(data.test_samples),
        },
        "classes": list(data.info.class_names),
        "class_counts": list(data.info.class_counts),
        "vector_size": data.info.vector_size,
        "superclasses": data.info.superclasses and list(data.info.superclasses),
    }
