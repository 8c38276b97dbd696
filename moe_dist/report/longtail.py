"""The figures of long-tailed sets and of the experts of a model, each drawn if the run has results for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moe_dist.metrics.classification import class_means
from moe_dist.plots import longtail as plots
from moe_dist.plots.drawing import Drawing
from moe_dist.report.run import ModelRun, RunDirectory


def draw_longtail(run: RunDirectory) -> Iterator[Drawing]:
    """Draw accuracy by class size, gradient shares, divergence of experts, t-SNE and Grad-CAM."""
    counts = run.class_counts
    if counts is not None and run.classifying and run.class_groups:
        yield _accuracy_by_size(run, counts)
    # One expert alone has all of the gradient, so its shares are not shown.
    several = f"{plots.SHARE}1"
    logs = {model.title: model.log for model in run.models.values() if any(several in record for record in model.log)}
    if logs:
        yield _gradient_shares(run, logs)
    if counts is not None and any(evaluation.divergence is not None for _, evaluation in run.evaluated):
        yield _divergence(run, counts)
    pictures = {model.title: evaluation.pictures for model, evaluation in run.evaluated}
    projected = {title: shown["tsne"] for title, shown in pictures.items() if "tsne" in shown}
    if projected:
        yield _features(run, projected)
    for model, evaluation in run.evaluated:
        if "grad_cam" in evaluation.pictures:
            yield _grad_cam(run, model, evaluation.pictures["grad_cam"])


def _accuracy_by_size(run: RunDirectory, counts: np.ndarray) -> Drawing:
    heading = f"Accuracy by class size ({run.test_split})"
    models = {model.title: evaluation.metrics["recall"] for model, evaluation in run.classifying}
    return Drawing(
        "accuracy_by_class_size",
        heading,
        f"Above, the training images of every class (n = {run.record['counts']['train']:,}); below, the share of each "
        "class's test images that a model gets right. Bars: the mean over the classes of a group.",
        plots.accuracy_under_profile(heading, counts, models, run.class_groups),
        about="classes",
    )


def _gradient_shares(run: RunDirectory, logs: Mapping[str, list[dict[str, Any]]]) -> Drawing:
    heading = (
        f"Each expert's share of the gradient ({run.record['dataset']}, training part, "
        f"n = {run.record['counts']['train']:,})"
    )
    return Drawing(
        "gradient_shares",
        heading,
        "Mean absolute gradient of the last convolution of every expert, "
        "summed over the steps of an epoch, as shares. Stages that train no convolution have none.",
        plots.gradient_shares(heading, logs),
        about="experts",
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
        "KL divergence between the softmax outputs of two experts, summed over "
        "ordered pairs of experts, mean over a class's test images.",
        plots.divergence_by_class(heading, counts, models),
        about="experts",
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
        "Classes equally spaced by size, the largest named first. Distances between "
        "clusters, and panels with each other, do not compare.",
        plots.feature_maps(heading, projected, run.record["classes"]),
        about="classes",
    )


def _grad_cam(run: RunDirectory, model: ModelRun, looked_at: Mapping[str, np.ndarray]) -> Drawing:
    names = run.record["classes"]
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
        "Grad-CAM of the true class's logit on the expert's last map, each scaled "
        "by its own maximum. Images: the first of each class in the test split. Below a map: what the expert takes "
        "the image for.",
        plots.grad_cam(heading, looked_at, titles, names),
        about="experts",
    )
