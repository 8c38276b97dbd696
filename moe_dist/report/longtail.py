"""The figures of long-tailed sets and of the experts of a model, each drawn if the run has results for it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moe_dist.metrics.classification import class_means
from moe_dist.plots import longtail as plots
from moe_dist.report.drawing import Drawing
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory

SCHEDULE = ("t_ad", "t_cl")
"""The settings of ICL's schedule: the epoch AD ends at, and the epoch CCL begins at."""


def draw_longtail(run: RunDirectory) -> Iterator[Drawing]:
    """Draw accuracy by class size, gradient shares, divergence of experts, schedules, t-SNE and Grad-CAM."""
    counts = run.class_counts
    if counts is not None and run.evaluated and run.class_groups:
        yield _accuracy_by_size(run, counts)
    # One expert alone has all of the gradient, so its shares are not shown.
    several = f"{plots.SHARE}1"
    logs = {model.title: model.log for model in run.models.values() if any(several in record for record in model.log)}
    if logs:
        yield _gradient_shares(run, logs)
    if counts is not None and any(evaluation.divergence is not None for _, evaluation in run.evaluated):
        yield _divergence(run, counts)
    for number, top1 in enumerate(_schedule_grids(run)):
        yield _schedule_grid(run, number, top1)
    projected = {model.title: evaluation.tsne for model, evaluation in run.evaluated if evaluation.tsne}
    if projected:
        yield _features(run, projected)
    for model, evaluation in run.evaluated:
        if evaluation.grad_cam:
            yield _grad_cam(run, model, evaluation)


def _accuracy_by_size(run: RunDirectory, counts: np.ndarray) -> Drawing:
    heading = f"Accuracy by class size ({run.test_split})"
    models = {model.title: evaluation.metrics["recall"] for model, evaluation in run.evaluated}
    return Drawing(
        "accuracy_by_class_size",
        heading,
        f"Above, the training images of every class (n = {run.record['counts']['train']:,}); below, the share of each "
        "class's test images that a model gets right. Bars: the mean over the classes of a group.",
        plots.accuracy_under_profile(heading, counts, models, run.class_groups),
    )


def _gradient_shares(run: RunDirectory, logs: Mapping[str, list[dict[str, Any]]]) -> Drawing:
    heading = (
        f"Each expert's share of the gradient ({run.record['dataset']}, training part, "
        f"n = {run.record['counts']['train']:,})"
    )
    return Drawing(
        "gradient_shares",
        heading,
        "The counterpart of ICL's Figures 1 and 3a: mean absolute gradient of the last convolution of every expert, "
        "summed over the steps of an epoch, as shares. Stages that train no convolution have none.",
        plots.gradient_shares(heading, logs),
    )


def _divergence(run: RunDirectory, counts: np.ndarray) -> Drawing:
    heading = f"How far the experts' predictions lie apart, by class ({run.test_split})"
    models = {
        model.title: class_means(evaluation.divergence, evaluation.labels, len(counts))
        for model, evaluation in run.evaluated
        if evaluation.divergence is not None
    }
    return Drawing(
        "divergence_of_experts",
        heading,
        "The counterpart of ICL's Figure 3b: KL divergence between the softmax outputs of two experts, summed over "
        "ordered pairs of experts, mean over a class's test images.",
        plots.divergence_by_class(heading, counts, models),
    )


def _schedule_grids(run: RunDirectory) -> Iterator[dict[tuple[int, int], float]]:
    """Top-1 by (t_ad, t_cl), for every set of evaluated models that differ in these two settings only, and in both."""
    grids: dict[str, dict[tuple[int, int], float]] = {}
    for model, evaluation in run.evaluated:
        if all(field in model.settings for field in SCHEDULE):
            rest = {field: value for field, value in model.settings.items() if field not in SCHEDULE}
            cell = (model.settings["t_ad"], model.settings["t_cl"])
            grids.setdefault(json.dumps(rest, sort_keys=True), {})[cell] = evaluation.metrics["top1"]
    for grid in grids.values():
        if all(len(set(values)) > 1 for values in zip(*grid)):
            yield grid


def _schedule_grid(run: RunDirectory, number: int, top1: Mapping[tuple[int, int], float]) -> Drawing:
    heading = f"Top-1 by ICL's schedule ({run.test_split})"
    return Drawing(
        f"schedule_grid_{number}",
        heading,
        "The counterpart of ICL's Figure 4: the diversity loss AD is on before epoch t_AD, the contrastive loss CCL "
        f"from epoch t_CL on. {len(top1)} trainings of one seed each.",
        plots.schedule_grid(heading, top1),
    )


def _features(run: RunDirectory, projected: Mapping[str, Mapping[str, Any]]) -> Drawing:
    first = next(iter(projected.values()))["labels"]
    heading = (
        f"t-SNE of test features ({run.record['dataset']}, test split, {len(set(first.tolist()))} classes, "
        f"n = {len(first):,})"
    )
    return Drawing(
        "tsne",
        heading,
        "The counterpart of ICL's Figure 5: classes equally spaced by size, the largest named first. Distances between "
        "clusters, and panels with each other, do not compare.",
        plots.feature_maps(heading, projected, run.record["classes"]),
    )


def _grad_cam(run: RunDirectory, model: ModelRun, evaluation: Evaluation) -> Drawing:
    names, looked_at = run.record["classes"], evaluation.grad_cam
    heading = (
        f"{model.title}: where each expert sees the true class ({run.record['dataset']}, test split, "
        f"n = {len(looked_at['labels'])})"
    )
    counts = run.class_counts
    titles = [
        names[label] if counts is None else f"{names[label]}\n({counts[label]:,} in training)"
        for label in looked_at["labels"]
    ]
    return Drawing(
        f"grad_cam_{model.name}",
        heading,
        "The counterpart of ICL's Figure 6: Grad-CAM of the true class's logit on the expert's last map, each scaled "
        "by its own maximum. Images: the first of each class in the test split. Below a map: what the expert takes "
        "the image for.",
        plots.grad_cam(heading, looked_at, titles, names),
    )
