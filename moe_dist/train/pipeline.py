"""A method's steps before training: each runs once, and again only when something it depends on changed."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
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
    seen = data.config.model_dump(mode="json", include={"image_size", "crop_roi", "mean", "std", "window_shards"})
    inputs = fingerprint(data.split_digest, job.seed, seen)
    results = Results(folder)
    for step in method.steps():
        inputs = fingerprint(inputs, step.name, step.settings)
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
        if step.name == last:
            break
    return results, inputs


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
