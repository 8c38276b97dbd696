"""A method's steps before training: each runs once, and again only when something it depends on changed."""

from __future__ import annotations

import time

from moe_dist.data.opened.opened import OpenedData
from moe_dist.job import Job
from moe_dist.methods.base import Method, RunTasks, Step, Workspace
from moe_dist.places import ModelFolder
from moe_dist.record.fingerprints import step_fingerprints
from moe_dist.record.results import Results, done, save_result
from moe_dist.record.run_record import RunRecord
from moe_dist.terminal import Show


def run_steps(
    method: Method,
    job: Job,
    data: OpenedData,
    model: ModelFolder,
    run_tasks: RunTasks,
    record: RunRecord,
    show: Show,
    last: str | None = None,
) -> Results:
    """Run the steps whose result is not there yet; the results of all of them.

    A result lies under the fingerprint of what leads to it, so that one of other settings stays where it is.
    last: the step to end with; None: all are run.
    """
    planned = list(step_fingerprints(method, job, data))
    results = Results({step.name: model.step(step.name, inputs) for step, inputs in planned})
    for step, inputs in planned:
        folder = results.folders[step.name]
        if finished := done(folder):
            show.skipped(step.title, finished["seconds"])
        else:
            with show.working(step.title):
                record.work_begins()
                started = time.perf_counter()
                result = step.run(_workspace(step, method, job, data, results, run_tasks))
                save_result(folder, result, inputs, time.perf_counter() - started, record.number)
        if step.name == last:
            break
    return results


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
