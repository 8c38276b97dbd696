"""Runs a method's steps. A step runs again only if something that it depends on has changed."""

from __future__ import annotations

import time
from collections.abc import Callable

from torch import nn

from moe_dist.data.opened.opened import OpenedData
from moe_dist.job import Job
from moe_dist.methods.base import Method
from moe_dist.methods.phases import RunTasks, Step, Workspace
from moe_dist.record.fingerprints import PlannedStep
from moe_dist.record.results import Results, done, save_result
from moe_dist.record.run_record import RunRecord
from moe_dist.terminal import Show


def run_step(
    planned: PlannedStep,
    method: Method,
    job: Job,
    data: OpenedData,
    results: Results,
    trained: Callable[[str], nn.Module],
    run_tasks: RunTasks,
    record: RunRecord,
    show: Show,
) -> None:
    """Run a step and save its result, unless it has been saved already.

    results: the results of all steps, with the folders of those to come. The name of a folder is the fingerprint of
    all that the result depends on, so that results of other settings are kept.
    """
    step = planned.step
    folder = results.folders[step.name]
    if finished := done(folder):
        show.skipped(step.title, finished["seconds"])
        return
    with show.working(step.title):
        record.work_begins()
        started = time.perf_counter()
        workspace = _workspace(step, method, job, data, results, trained, run_tasks)
        result = step.run(workspace)
        save_result(folder, result, planned.fingerprint, time.perf_counter() - started, record.number)


def _workspace(
    step: Step,
    method: Method,
    job: Job,
    data: OpenedData,
    results: Results,
    trained: Callable[[str], nn.Module],
    run_tasks: RunTasks,
) -> Workspace:
    true_labels = data.train.labels
    return Workspace(
        info=data.info,
        data=data.config,
        seed=job.seed,
        images=data.train.images,
        labels=method.visible_labels(results, true_labels),
        groups=data.train.groups,
        names=data.train.names,
        samples=data.train_samples,
        true_labels=true_labels if step.sees_true_labels else None,
        results=results,
        trained=trained,
        run_tasks=run_tasks,
    )
