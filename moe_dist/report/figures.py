"""The figures of a run: which there are, in which order, and what stands above and below each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moe_dist.metrics.classification import confusion_counts
from moe_dist.metrics.clustering import match
from moe_dist.plots import charts, profile
from moe_dist.plots.drawing import Drawing, Picture
from moe_dist.plots.style import WIDTH, save_figure, style
from moe_dist.plots.training import curves_of_models, epoch_means, epochs_of, score_of, training_curves
from moe_dist.report.calibration import draw_reliability
from moe_dist.report.longtail import draw_longtail
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory
from moe_dist.report.tune import draw_searches

LARGEST_NAMED = 30
"""Largest number of classes that get a bar with their name in the profile of the data."""


def draw_figures(run: RunDirectory) -> list[Picture]:
    """Save every figure that the run has results for in its figures/ folder, and return them in the report's order."""
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    pictures = []
    counterparts: dict[str, list[str]] = {}
    for report, _ in run.reports():
        for figure, sentence in report.counterparts.items():
            counterparts.setdefault(figure, []).append(sentence)
    with style():
        for drawing in _drawings(run):
            path = folder / f"{drawing.name}.svg"
            save_figure(drawing.figure, path, "svg")
            caption = " ".join([*counterparts.get(drawing.name, ()), drawing.caption])
            width = drawing.figure.get_figwidth() / WIDTH
            pictures.append(Picture(path, width, drawing.heading, caption, drawing.about))
    return pictures


def _drawings(run: RunDirectory) -> Iterator[Drawing]:
    """Every figure that the run has results for, drawn only when it is asked for."""
    yield from _all_curves(run)
    if run.classifying:
        yield _precision(run)
    for report, models in run.reports():
        yield from report.drawings(run, models)
    for model, evaluation in run.evaluated:
        for name, gate in evaluation.gates.items():
            yield _gate_load(run, model, name, gate, evaluation.labels)
    for model in run.models.values():
        for stage, log in [("", model.log), *model.earlier_logs.items()]:
            if any(record["kind"] == "epoch" for record in log):
                yield _training(run, model, stage, log)
    yield from draw_longtail(run)
    yield from draw_searches(run)
    for model, evaluation in run.evaluated:
        if evaluation.predicts == "classes":
            yield _test_confusion(run, model, evaluation)
            yield draw_reliability(run, model, evaluation)
        else:
            yield _clusters_and_classes(run, model, evaluation)
    yield from _data(run)


def _all_curves(run: RunDirectory) -> Iterator[Drawing]:
    """Training and validation of all models in one plot; a single model's own figure shows more."""
    logs = {model.title: model.log for model in run.models.values() if any("loss" in record for record in model.log)}
    if len(logs) < 2:
        return
    heading = f"Training and validation of every model ({run.record['dataset']})"
    ends = [f"{title} {scores[-1]:.3f}" for title, log in logs.items() if (scores := _scores(log))]
    yield Drawing(
        "curves",
        heading,
        "Each model's objective (what it minimises, so that one model's level says nothing about another's) and the "
        "negative log-likelihood on the validation split, means of an epoch."
        + (f" Score on validation at the end: {', '.join(ends)}." if ends else ""),
        curves_of_models(heading, logs),
        about="training",
    )


def _scores(log: Sequence[dict[str, Any]]) -> list[float]:
    """The score on validation by epoch; none without a validation."""
    key = score_of(log)
    return epoch_means(log, epochs_of(log), key)[1] if key else []


def _data(run: RunDirectory) -> Iterator[Drawing]:
    """How many training images each class has, and what images look like."""
    names, counts = run.record["classes"], run.class_counts
    if counts is not None:
        heading = f"Training images by class ({run.record['dataset']}, n = {counts.sum():,})"
        few = len(counts) <= LARGEST_NAMED
        yield Drawing(
            "class_profile",
            heading,
            f"The largest class has {counts.max():,} images, the smallest {counts.min():,}; without those of the "
            "validation split, and without images that have no label.",
            charts.class_bars(heading, counts, names, "class") if few else profile.class_profile(heading, counts),
            about="data",
        )
    if (found := run.sample_images) is not None:
        images, labels = found
        heading = f"Some training images of {len(set(labels.tolist()))} classes ({run.record['dataset']})"
        yield Drawing(
            "sample_images",
            heading,
            "As they are after decoding, before any random change; classes equally spaced by size, the largest first.",
            profile.sample_images(heading, images, labels, names),
            about="data",
        )


def _precision(run: RunDirectory) -> Drawing:
    models = {model.title: evaluation.metrics["precision"] for model, evaluation in run.classifying}
    heading = f"Precision by class ({run.test_split})"
    return Drawing(
        "precision_by_class",
        heading,
        "Of the test images a model assigns to a class, the share that belongs to it. The axis does not start at 0; a "
        "cross at its left end marks a class that the model never predicts.",
        charts.precision_by_class(heading, run.record["classes"], models),
        about="classes",
    )


def _gate_load(run: RunDirectory, model: ModelRun, name: str, gate: np.ndarray, labels: np.ndarray) -> Drawing:
    heading = f"{model.title}: load of the gate{f' {name}' if name else ''} ({run.test_split})"
    return Drawing(
        f"gate_load_{model.name}{f'_{name}' if name else ''}",
        heading,
        "Mean gate weight of each expert over all test images (above) and over the images of each class (below). A "
        "gate that specialises has one dark cell in a row; one that has collapsed has one dark column.",
        charts.gate_load(heading, gate, labels, run.record["classes"]),
        about="experts",
    )


def _training(run: RunDirectory, model: ModelRun, stage: str, log: Sequence[dict[str, Any]]) -> Drawing:
    validation = run.record["counts"]["val"]
    of = f", validation n = {validation:,}" if validation else ""
    heading = f"{model.title}: training ({run.record['dataset']}{of})"
    terms = "the loss terms as they enter the objective, averaged over each epoch's logged steps"
    name, last = f"training_{model.name}", "; the test split saw the last epoch's model"
    if stage:
        heading = f"{model.title}: training of {stage.replace('_', ' ')} ({run.record['dataset']})"
        name, last = f"{name}_{stage}", ""
    return Drawing(
        name,
        heading,
        f"Left, {terms}, and the validation loss (negative log-likelihood); right, accuracy on the validation split."
        if any("val/loss" in record for record in log)
        else f"{terms.capitalize()}. There was no validation{last}.",
        training_curves(heading, log),
        about="training",
    )


def _test_confusion(run: RunDirectory, model: ModelRun, evaluation: Evaluation) -> Drawing:
    names = run.record["classes"]
    heading = f"{model.title}: confusion of classes ({run.test_split})"
    counts = confusion_counts(evaluation.labels, evaluation.log_probs.argmax(axis=1), len(names))
    return Drawing(
        f"confusion_{model.name}",
        heading,
        "Rows are true classes, columns predictions; colour follows the square root of the share of the row.",
        charts.confusion(heading, counts, names, "predicted class"),
        about="classes",
    )


def _clusters_and_classes(run: RunDirectory, model: ModelRun, evaluation: Evaluation) -> Drawing:
    """Columns in the order of the classes that their clusters are matched with; unmatched clusters come last."""
    names, clusters = run.record["classes"], evaluation.log_probs.argmax(axis=1)
    counts = np.zeros((len(names), evaluation.log_probs.shape[1]), np.int64)
    np.add.at(counts, (evaluation.labels, clusters), 1)
    matched = np.full(counts.shape[1], -1)
    matched[: clusters.max() + 1] = match(clusters, evaluation.labels)
    order = np.argsort(np.where(matched < 0, len(names), matched), kind="stable")
    heading = f"{model.title}: clusters and classes ({run.test_split})"
    return Drawing(
        f"clusters_{model.name}",
        heading,
        "Rows are true classes, which the method does not see, columns its clusters, in the order of the classes that "
        "they are matched with; colour follows the square root of the share of the row.",
        charts.confusion(heading, counts[:, order], names, "cluster", [str(cluster) for cluster in order]),
        about="classes",
    )
