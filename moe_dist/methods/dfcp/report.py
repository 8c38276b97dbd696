"""DFCP-MoE's part of the report: the scan of radii, clusters and pseudo-labels, and Table 1's layout of a search."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun, ReportedStep
from moe_dist.plots import charts
from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import percent


class DfcpReport(MethodReport):
    """Figures and numbers of the steps that make the pseudo-labels."""

    papers = Path(__file__).with_name("paper.yaml")
    counterparts: ClassVar = {"precision_by_class": "The counterpart of DFCP-MoE's Figure 1."}
    parameters: ClassVar = {
        "fc1": "FC1",
        "fc2": "FC2",
        "learning_rate": "Learning rate",
        "optimiser": "Optimiser",
        "batch_size": "Batch size",
        "conv1": "Conv1",
        "conv2": "Conv2",
    }
    rows = (
        ("purity_stage1", "Purity, first stage", percent),
        ("davies_bouldin_stage1", "Davies-Bouldin, first stage", "{:.3f}".format),
        ("davies_bouldin_stage2", "Davies-Bouldin, second stage", "{:.3f}".format),
        ("pseudo_label_accuracy", "Pseudo-labels right", percent),
        ("purity", "Purity, merged clusters", percent),
    )

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """How good the clusters and the pseudo-labels are, as far as steps are finished and true labels known."""
        for name, value in self._all_numbers(model):
            if value is not None:
                yield name, value

    def _all_numbers(self, model: ReportedModel) -> Iterator[tuple[str, float | None]]:
        if "second_stage" in model.steps:
            stage = model.steps["second_stage"].values
            yield "davies_bouldin_stage1", stage["stage1_davies_bouldin"]
            yield "davies_bouldin_stage2", stage["davies_bouldin"]
            yield "purity_stage1", stage["stage1_purity"]
            for row in stage["scan"]:
                if row["radius"] == stage["chosen"]:
                    yield "radius", row["radius"]
                    yield "coverage", row["coverage"]
        if "pseudo_labels" in model.steps:
            labels = model.steps["pseudo_labels"].values
            yield "pseudo_label_accuracy", labels["accuracy"]
            yield "cluster_label_accuracy", labels["cluster_label_accuracy"]
            yield "outliers", labels["outliers"]
            yield "purity", labels["purity"]
            yield "threshold", labels["threshold"]
            yield "threshold_f1", labels["f1"]

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """The scan of radii, the sizes of the clusters, and the pseudo-labels against the true labels."""
        for model in models:
            if "second_stage" in model.steps:
                yield _radius_scan(run, model, model.steps["second_stage"])
            if "pseudo_labels" in model.steps:
                yield from _pseudo_labels(run, model, model.steps["pseudo_labels"])


def _radius_scan(run: ReportedRun, model: ReportedModel, step: ReportedStep) -> Drawing:
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


def _pseudo_labels(run: ReportedRun, model: ReportedModel, step: ReportedStep) -> Iterator[Drawing]:
    """The sizes of the experts' clusters, and the pseudo-labels against the true labels."""
    names, dataset = run.record["classes"], run.record["dataset"]
    sizes, counts = step.array("cluster_sizes"), step.array("confusion")
    heading = f"{model.title}: images in each expert's cluster ({dataset}, n = {sizes.sum():,})"
    yield Drawing(
        f"cluster_sizes_{model.name}",
        heading,
        f"After clusters of one class have merged; {step.values['outliers']:,} outliers are in none of them.",
        charts.class_bars(heading, sizes, names, "class of the cluster, and of its expert"),
    )
    if not counts.any():  # nobody knows a true label
        return
    heading = f"{model.title}: pseudo-labels against true labels ({dataset}, n = {counts.sum():,})"
    yield Drawing(
        f"pseudo_labels_{model.name}",
        heading,
        "Outliers left out. Rows are true classes, which the method does not see; colour follows the square root of "
        "the share, so that rare errors show.",
        charts.confusion(heading, counts, names, "pseudo-label"),
    )


REPORT = DfcpReport()
