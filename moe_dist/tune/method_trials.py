"""Trials of a method as a whole: each a training by the loop, scored on the validation split, and stopped at rungs."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from moe_dist.data.storage.store import StoreFailed
from moe_dist.disk import raising_disk_errors
from moe_dist.methods.registry import method_class
from moe_dist.train.log import last_metrics
from moe_dist.train.loop import train
from moe_dist.train.task import TrainingTask
from moe_dist.train.worker import LocalWorker
from moe_dist.tune.backend import failure
from moe_dist.tune.halving import Rungs
from moe_dist.tune.space import configured
from moe_dist.tune.studies import tune_settings
from moe_dist.tune.trials import Outcome, Point, Round, State, Trial

TRIALS = "trials"
"""The folder, in the search's folder, of the trials' trainings; a trial leaves its metrics.jsonl there."""


def open_method_backend(packed: dict[str, Any], device: torch.device) -> MethodBackend:
    """The backend of a method's trials of a packed TrainingTask."""
    task = TrainingTask.unpack(packed)
    return MethodBackend(task, tune_settings(task.job).rung_factor, device)


class Stopped(Exception):
    """A trial that is not among the best at its rung."""


class TrialWorker(LocalWorker):
    """A rank that keeps no checkpoints and begins at the first step; `epoch_done` is called after every epoch."""

    def __init__(self, device: torch.device, epoch_done: Callable[[bool], None]) -> None:
        super().__init__(Path(), 1, 0, 1, device)
        self._epoch_done = epoch_done

    def restore(self) -> Path | None:
        """No checkpoint."""
        return None

    @contextlib.contextmanager
    def saving(self, metrics: dict[str, Any]) -> Iterator[Path]:
        """A folder that is deleted when the block ends."""
        with (
            tempfile.TemporaryDirectory(prefix="moe-dist-trial-") as folder,
            raising_disk_errors(Path(folder).parent, "a trial's checkpoint"),
        ):
            yield Path(folder)
        self._epoch_done(metrics["done"])


class MethodBackend:
    """Trains a method's trials one after another in this process."""

    def __init__(self, task: TrainingTask, rung_factor: int, device: torch.device) -> None:
        self._task, self._rung_factor, self._device = task, rung_factor, device

    def run(self, work: Round) -> list[list[Outcome]]:
        """See Backend."""
        outcomes = []
        for batch in work.batches:
            rungs = Rungs(self._rung_factor, batch.rungs or {})
            outcomes.append([self._run_trial(trial, rungs) for trial in batch.trials])
        return outcomes

    def _run_trial(self, trial: Trial, rungs: Rungs) -> Outcome:
        started = time.perf_counter()
        curve: list[Point] = []
        state: State = "finished"
        reason = ""
        score = method_class(self._task.job.models[self._task.model].name).chosen_by

        def epoch_done(folder: Path, is_last: bool) -> None:
            line = last_metrics(folder / "metrics.jsonl")  # the loop has ended a training whose loss is not finite
            assert line is not None and line["kind"] == "epoch"
            point = Point(len(curve) + 1, line[f"val/{score}"], line.get("val/loss", line["loss"]))
            curve.append(point)
            if not is_last and trial.number not in rungs.survivors(point.epoch, {trial.number: point.sort_key}):
                raise Stopped

        try:
            task = trial_task(self._task, trial.number, trial.values)  # values that do not go together are refused
            with raising_disk_errors(task.folder, "a trial's log"):
                train(TrialWorker(self._device, lambda done: epoch_done(task.folder, done)), task)
        except Stopped:
            state = "stopped"
        except Exception as error:
            state, reason = "failed", failure(error)
        with contextlib.suppress(StoreFailed):  # its log is no part of its outcome
            self._task.push_bad_samples(self._task.folder / TRIALS / str(trial.number))
        return Outcome(state, tuple(curve), time.perf_counter() - started, reason)


def trial_task(task: TrainingTask, number: int, values: Mapping[str, Any]) -> TrainingTask:
    """The training of a trial: the job with these values, in a folder of its own, on the results of the same steps."""
    method = configured(task.job.models[task.model], values)
    checkpoint = task.job.checkpoint.model_copy(update={"every_epochs": 1, "every_steps": 0})
    job = task.job.model_copy(update={"method": method, "checkpoint": checkpoint})
    folder = task.folder / TRIALS / str(number)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    return replace(task, job=job, folder=folder)
