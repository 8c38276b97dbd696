"""Making a run's report: metrics.json, results.md, figures/ and report.html, from what the run left."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from moe_dist.report.figures import draw_figures
from moe_dist.report.metrics import classification_metrics
from moe_dist.report.page import render_page
from moe_dist.report.render import to_markdown
from moe_dist.report.run import Evaluation, RunDirectory, StepRecord
from moe_dist.report.tables import results_table


def build_report(path: Path) -> Path:
    """Write the report of the run directory `path` and return its report.html. Raises UserError for any other folder.

    A run that is not finished gets the report of what is there, and says so.
    """
    run = RunDirectory(path)
    metrics = flat_metrics(run)
    results = results_table(run, metrics)
    (path / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
    (path / "results.md").write_text(to_markdown(results), encoding="utf-8")
    page = path / "report.html"
    page.write_text(render_page(run, results, draw_figures(run)), encoding="utf-8")
    return page


def flat_metrics(run: RunDirectory) -> dict[str, float]:
    """Every number of the run as <label>/<metric>: shares in [0, 1], times with their unit in the name."""
    metrics: dict[str, float] = {}
    for model in run.models.values():
        values = dict(_step_metrics(model.steps))
        if model.evaluation:
            values |= dict(_evaluation_metrics(model.evaluation))
        metrics |= {f"{model.label}/{name}": value for name, value in values.items()}
    return metrics


def _evaluation_metrics(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    metrics = evaluation.metrics
    yield "top1", metrics["top1"]
    yield "top1_low", metrics["top1_interval"].low
    yield "top1_high", metrics["top1_interval"].high
    yield "map", metrics["map"]
    yield "balanced_accuracy", metrics["balanced_accuracy"]
    yield "nll", metrics["nll"]
    yield "classes_absent", metrics["classes_absent"]
    yield "test_images", metrics["images"]
    for k, log_probs in sorted(evaluation.top_k.items()):
        yield f"top1_k{k}", classification_metrics(evaluation.labels, log_probs)["top1"]
    for experts, latency in evaluation.latency.items():
        suffix = "" if experts == "all" else f"_k{experts.removeprefix('top')}"
        for name in ("median_ms", "p99_ms", "mean_ms"):
            yield f"latency_{name}{suffix}", latency[name]
    yield "train_seconds", evaluation.train_seconds
    yield "train_seconds_summed", evaluation.train_seconds_summed
    yield "parameters", evaluation.parameters


def _step_metrics(steps: Mapping[str, StepRecord]) -> Iterator[tuple[str, float]]:
    """DFCP's steps in numbers; a method without these steps has none of them."""
    if "second_stage" in steps:
        stage = steps["second_stage"].values
        yield "davies_bouldin_stage1", stage["stage1_davies_bouldin"]
        yield "davies_bouldin_stage2", stage["davies_bouldin"]
        yield "purity_stage1", stage["stage1_purity"]
        for row in stage["scan"]:
            if row["radius"] == stage["chosen"]:
                yield "radius", row["radius"]
                yield "coverage", row["coverage"]
    if "pseudo_labels" in steps:
        labels = steps["pseudo_labels"].values
        yield "pseudo_label_accuracy", labels["accuracy"]
        yield "cluster_label_accuracy", labels["cluster_label_accuracy"]
        yield "outliers", labels["outliers"]
        yield "purity", labels["purity"]
        yield "threshold", labels["threshold"]
        yield "threshold_f1", labels["f1"]
