"""The figures of a run: which there are, in which order, and what stands above and below each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moe_dist.metrics.classification import confusion_counts
from moe_dist.plots import charts
from moe_dist.plots.style import WIDTH, save_figure, style
from moe_dist.plots.training import training_curves
from moe_dist.report.drawing import Drawing, Picture
from moe_dist.report.longtail import draw_longtail
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory, StepRecord
from moe_dist.report.tune import draw_searches


def draw_figures(run: RunDirectory) -> list[Picture]:
    """Save every figure that the run has results for in its figures/ folder, and return them in the report's order."""
    folder = run.path / "figures"
    folder.mkdir(exist_ok=True)
    pictures = []
    with style():
        for drawing in _drawings(run):
            path = folder / f"{drawing.name}.png"
            save_figure(drawing.figure, path)
            pictures.append(Picture(path, drawing.figure.get_figwidth() / WIDTH, drawing.heading, drawing.caption))
    return pictures


def _drawings(run: RunDirectory) -> Iterator[Drawing]:
    """Every figure that the run has results for, drawn only when it is asked for."""
    if run.evaluated:
        yield _precision(run)
    for model in run.models.values():
        if "second_stage" in model.steps:
            yield _radius_scan(run, model, model.steps["second_stage"])
        if "pseudo_labels" in model.steps:
            yield from _pseudo_labels(run, model, model.steps["pseudo_labels"])
    for model, evaluation in run.evaluated:
        if evaluation.gate is not None:
            yield _gate_load(run, model, evaluation.gate, evaluation.labels)
    for model in run.models.values():
        if any(record["kind"] == "epoch" for record in model.log):
            yield _training(run, model)
    yield from draw_longtail(run)
    yield from draw_searches(run)
    for model, evaluation in run.evaluated:
        yield _test_confusion(run, model, evaluation)


def _precision(run: RunDirectory) -> Drawing:
    models = {model.title: evaluation.metrics["precision"] for model, evaluation in run.evaluated}
    heading = f"Precision by class ({run.test_split})"
    caption = "The counterpart of the paper's Figure 1. " if run.paper and "dfcp" in run.paper.titles else ""
    return Drawing(
        "precision_by_class",
        heading,
        f"{caption}Of the test images a model assigns to a class, the share that belongs to it. The axis does not "
        "start at 0; a cross at its left end marks a class that the model never predicts.",
        charts.precision_by_class(heading, run.record["classes"], models),
    )


def _radius_scan(run: RunDirectory, model: ModelRun, step: StepRecord) -> Drawing:
    values = step.values
    n = len(step.array("labels"))
    heading = f"{model.title}: scan of the second stage's radius ({run.record['dataset']}, n = {n:,} clustered images)"
    chosen = "the dotted line marks the radius with the lowest index at sufficient coverage"
    if values["chosen"] is None:
        chosen = "no radius had sufficient coverage, and the first stage's clusters were kept"
    return Drawing(
        f"radius_scan_{model.name}",
        heading,
        f"Davies-Bouldin index, share of samples within the radius of a reference cluster (coverage), and purity; "
        f"{chosen}. Purity is scored with labels that the method itself does not see.",
        charts.radius_scan(heading, values["scan"], values["chosen"], values["stage1_davies_bouldin"]),
    )


def _pseudo_labels(run: RunDirectory, model: ModelRun, step: StepRecord) -> Iterator[Drawing]:
    """The sizes of the experts' clusters, and the pseudo-labels against the true labels."""
    names, dataset = run.record["classes"], run.record["dataset"]
    sizes, counts = step.array("cluster_sizes"), step.array("confusion")
    heading = f"{model.title}: images in each expert's cluster ({dataset}, n = {sizes.sum():,})"
    yield Drawing(
        f"cluster_sizes_{model.name}",
        heading,
        f"After clusters of one class have merged; {step.values['outliers']:,} outliers are in none of them.",
        charts.cluster_sizes(heading, sizes, names),
    )
    heading = f"{model.title}: pseudo-labels against true labels ({dataset}, n = {counts.sum():,})"
    yield Drawing(
        f"pseudo_labels_{model.name}",
        heading,
        "Outliers left out. Rows are true classes, which the method does not see; colour follows the square root of "
        "the share, so that rare errors show.",
        charts.confusion(heading, counts, names, "pseudo-label"),
    )


def _gate_load(run: RunDirectory, model: ModelRun, gate: np.ndarray, labels: np.ndarray) -> Drawing:
    heading = f"{model.title}: load of the gate ({run.test_split})"
    return Drawing(
        f"gate_load_{model.name}",
        heading,
        "Mean gate weight of each expert over all test images (above) and over the images of each class (below). A "
        "gate that specialises has one dark cell in a row; one that has collapsed has one dark column.",
        charts.gate_load(heading, gate, labels, run.record["classes"]),
    )


def _training(run: RunDirectory, model: ModelRun) -> Drawing:
    validation = run.record["counts"]["val"]
    heading = f"{model.title}: training ({run.record['dataset']}, validation n = {validation:,})"
    terms = "the loss terms as they enter the objective, averaged over each epoch's logged steps"
    return Drawing(
        f"training_{model.name}",
        heading,
        f"Left, {terms}, and the validation loss (negative log-likelihood); right, accuracy on the validation split."
        if validation
        else f"{terms.capitalize()}. There was no validation; the test split saw the last epoch's model.",
        training_curves(heading, model.log),
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
    )
