"""A method's steps before training: each runs once, and again only when something it depends on changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moe_dist.config import Job
from moe_dist.data.opened import OpenedData
from moe_dist.methods.base import Method, RunTasks, Step, Workspace
from moe_dist.train.results import Results, done, save_result
from moe_dist.train.show import Show


def fingerprint(*parts: Any) -> str:
    """sha256 over JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_steps(
    method: Method,
    job: Job,
    data: OpenedData,
    folder: Path,
    run_tasks: RunTasks,
    show: Show,
    last: str | None = None,
) -> tuple[Results, str]:
    """Run the steps whose result is missing or out of date; the results, and a fingerprint over all that led to them.

    A step is out of date when its settings, the data's split, the seed or an earlier step's fingerprint changed.
    last: the step to end with; None: all are run.
    """
    results = Results(folder)
    for step, inputs in _planned(method, job, data, last):
        finished = done(folder / step.name)
        if finished and finished["fingerprint"] == inputs:
            show.skipped(step.title, finished["seconds"])
        else:
            shutil.rmtree(folder / step.name, ignore_errors=True)
            with show.working(step.title):
                started = time.perf_counter()
                result = step.run(_workspace(step, method, job, data, results, run_tasks))
                save_result(folder / step.name, result, inputs, time.perf_counter() - started)
            results = Results(folder)
    return results, inputs_of(method, job, data, last)


def inputs_of(method: Method, job: Job, data: OpenedData, last: str | None = None) -> str:
    """The fingerprint over all that leads to the results of the steps up to `last`, before any of them is run."""
    return [_data_inputs(job, data), *(inputs for _, inputs in _planned(method, job, data, last))][-1]


def _planned(method: Method, job: Job, data: OpenedData, last: str | None) -> Iterator[tuple[Step, str]]:
    """The steps up to `last`, each with the fingerprint of what it depends on."""
    inputs = _data_inputs(job, data)
    for step in method.steps():
        inputs = fingerprint(inputs, step.name, step.settings)
        yield step, inputs
        if step.name == last:
            return


def _data_inputs(job: Job, data: OpenedData) -> str:
    seen = data.config.model_dump(mode="json", include={"image_size", "crop_roi", "mean", "std", "window_shards"})
    return fingerprint(data.split_digest, job.seed, seen)


def _workspace(
    step: Step, method: Method, job: Job, data: OpenedData, results: Results, run_tasks: RunTasks
) -> Workspace:
    true_labels = data.train.labels
    return Workspace(
        info=data.info,
        data=data.config,
        seed=job.seed,
        images=data.train.images,
        labels=method.visible_labels(results, true_labels),
        groups=data.train.groups,
        samples=data.train_samples,
        true_labels=true_labels if step.sees_true_labels else None,
        results=results,
        run_tasks=run_tasks,
    )
