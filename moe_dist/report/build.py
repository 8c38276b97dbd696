"""Writing reports: metrics.json, results.md, figures/ and report.html of a run, and the table over several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.files import require_writable, write_json, write_text
from moe_dist.metrics.classification import classification_metrics, group_accuracy
from moe_dist.metrics.clustering import clustering_metrics
from moe_dist.plots.tables import Table, to_markdown
from moe_dist.report.calibration import calibration_metrics, rejection_table
from moe_dist.report.figures import draw_figures
from moe_dist.report.inline import remove_outdated
from moe_dist.report.page import render_page
from moe_dist.report.run import Evaluation, RunDirectory
from moe_dist.report.seeds import seeds_table
from moe_dist.report.tables import experts_table, restarts_table, results_table
from moe_dist.report.tune import search_tables


def build_report(path: Path) -> Path:
    """Write the report of the run directory `path` and return its report.html.

    The report of a run that is not finished shows what is there, and says so. Raises UserError for any other folder.
    """
    run = RunDirectory(path)
    require_writable(path, f"the report of {path}")
    metrics = flat_metrics(run)
    own = [table for report, models in run.reports() for table in report.tables(run, models)]
    tables = [results_table(run, metrics), experts_table(run, metrics), *own]
    tables += [rejection_table(run), *search_tables(run), restarts_table(run)]
    results = [table for table in tables if table.rows]
    write_json(path / "metrics.json", metrics)
    write_text(path / "results.md", "\n".join(map(to_markdown, results)))
    page, pictures = path / "report.html", draw_figures(run)
    remove_outdated(page, path / "figures", pictures)  # before the page that tells which they are is written again
    write_text(page, render_page(run, results, pictures))
    return page


def build_seeds_table(paths: Sequence[Path], folder: Path) -> Table:
    """The table over run directories of one job that differ in their seed; it is also written to `folder`/seeds.md.

    Raises UserError for a folder that is not a run directory, and as `seeds_table` does.
    """
    runs = [RunDirectory(path) for path in paths]
    require_writable(folder, f"the table {folder / 'seeds.md'}")
    table = seeds_table([(run, flat_metrics(run)) for run in runs])
    write_text(folder / "seeds.md", to_markdown(table))
    return table


def flat_metrics(run: RunDirectory) -> dict[str, float]:
    """Every number of the run as <model>/<metric>: shares in [0, 1], times with their unit in the name.

    bad_samples counts the samples that all models left out, and is missing if there are none.
    """
    metrics: dict[str, float] = {}
    own = {model.name: report for report, models in run.reports() for model in models}
    for model in run.models.values():
        values = dict(own[model.name].numbers(run, model)) if model.name in own else {}
        if evaluation := model.evaluation:
            if evaluation.predicts == "classes":
                values |= dict(_class_metrics(evaluation)) | dict(calibration_metrics(evaluation))
                values |= dict(_group_metrics(evaluation, run.class_groups))
            else:
                values |= dict(_cluster_metrics(evaluation))
            values |= dict(_cost_metrics(evaluation))
        values |= dict(_best_on_test(model.log))
        metrics |= {f"{model.name}/{name}": value for name, value in values.items()}
    if run.bad_samples.count:
        metrics["bad_samples"] = run.bad_samples.count
    return metrics


def _best_on_test(log: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    """The highest test top-1 of the epochs that were tested while training, and its number among all, from 1."""
    epochs = [line for line in log if line["kind"] == "epoch"]
    tested = [(line["test/top1"], -number) for number, line in enumerate(epochs, 1) if "test/top1" in line]
    if tested:
        top1, place = max(tested)
        yield "top1_best_on_test", top1
        yield "best_on_test_epoch", -place


def _class_metrics(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """How well a model predicts the classes of the test split."""
    metrics = evaluation.metrics
    yield "top1", metrics["top1"]
    yield "top1_low", metrics["top1_interval"].low
    yield "top1_high", metrics["top1_interval"].high
    if evaluation.chosen is not None and evaluation.chosen_epoch is not None:
        yield "top1_chosen", float((evaluation.chosen == evaluation.labels).mean())
        yield "chosen_epoch", evaluation.chosen_epoch
    yield "map", metrics["map"]
    yield "balanced_accuracy", metrics["balanced_accuracy"]
    yield "nll", metrics["nll"]
    yield "classes_absent", metrics["classes_absent"]
    yield "test_images", metrics["images"]
    for k, log_probs in sorted(evaluation.top_k.items()):
        yield f"top1_k{k}", classification_metrics(evaluation.labels, log_probs)["top1"]


def _cluster_metrics(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """How well a model's clusters of the test split agree with its classes."""
    metrics = evaluation.clustering
    yield "accuracy", metrics["accuracy"]
    yield "nmi", metrics["nmi"]
    yield "ari", metrics["ari"]
    yield "clusters", metrics["clusters"]
    if evaluation.chosen is not None and evaluation.chosen_epoch is not None:
        yield "accuracy_chosen", clustering_metrics(evaluation.chosen, evaluation.labels)["accuracy"]
        yield "chosen_epoch", evaluation.chosen_epoch
    yield "test_images", len(evaluation.labels)


def _cost_metrics(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """A model's latency and the cost of its training."""
    for experts, latency in evaluation.latency.items():
        suffix = "" if experts == "all" else f"_k{experts.removeprefix('top')}"
        for name in ("median_ms", "p99_ms", "mean_ms"):
            yield f"latency_{name}{suffix}", latency[name]
    yield "train_seconds", evaluation.train_seconds
    yield "train_seconds_summed", evaluation.train_seconds_summed
    yield "parameters", evaluation.parameters


def _group_metrics(evaluation: Evaluation, groups: Mapping[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Top-1 by group of classes and of each expert by itself, as top1_many, expert0_top1 and expert0_top1_many."""
    predicted = {"": evaluation.log_probs.argmax(axis=1)}
    if evaluation.choices is not None:
        predicted |= {f"expert{expert}_": choices for expert, choices in enumerate(evaluation.choices.T)}
    for who, classes in predicted.items():
        if who:
            yield f"{who}top1", float((classes == evaluation.labels).mean())
        for group, share in group_accuracy(evaluation.labels, classes, groups).items():
            yield f"{who}top1_{group}", share
    if evaluation.divergence is not None:
        yield "experts_divergence", float(evaluation.divergence.mean(dtype=np.float64))
