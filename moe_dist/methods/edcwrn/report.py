"""The part of EDCWRN, IDEC and DEC in the report: how the labels settled, and what each number of a code weighs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun
from moe_dist.plots import clusters as plots
from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import Column, Row, Table, percent

MEASURES = {
    "accuracy": "Clustering accuracy",
    "nmi": "NMI",
    "changed": "Labels that changed",
}
"""Values of a refresh that are drawn -> the panel's title."""


class EdcwrnReport(MethodReport):
    """Curves over the updates of the target, the heat map of the weights, and Table 4's variance."""

    papers = Path(__file__).with_name("paper.yaml")
    counterparts: ClassVar = {"tsne": "The counterpart of EDCWRN's Figures 8 to 13, which are by UMAP."}
    rows = (
        ("inter_cluster_variance", "Inter-cluster variance", "{:.3f}".format),
        ("clustering_steps", "Steps of clustering", "{:,.0f}".format),
        ("kmeans_pixels_accuracy", "ACC of k-means on the samples", percent),
        ("kmeans_pca_accuracy", "ACC of k-means on principal components", percent),
        ("kmeans_codes_accuracy", "ACC of k-means on pretrained codes", percent),
    )

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """What the last update of the target told; accuracy and NMI are of the training samples' labels; the floor."""
        for space, scores in model.steps["floor"].values.items() if "floor" in model.steps else ():
            yield f"kmeans_{space}_accuracy", float(scores["accuracy"])
            yield f"kmeans_{space}_nmi", float(scores["nmi"])
        if refreshes := _refreshes(model):
            last = refreshes[-1]
            yield "clustering_steps", float(last["step"])
            yield "inter_cluster_variance", float(last["inter_cluster_variance"])
            for name in ("accuracy", "nmi"):
                if name in last:
                    yield f"training_labels_{name}", float(last[name])

    def tables(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Table]:
        """The last update of the target, a row a model."""
        shown = [(model, refreshes) for model in models if (refreshes := _refreshes(model))]
        if shown:
            columns = tuple(Column("", title) for title in ("updates", *MEASURES.values()))
            rows = tuple(Row(model.title, _cells(refreshes)) for model, refreshes in shown)
            notes = ("Of the samples that were clustered; the labels are only used to score.",)
            yield Table("The target's last update", columns, rows, notes, corner="Model")

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """All models of one kind of method in one figure."""
        curves = {model.title: _curves(model) for model in models if _refreshes(model)}
        if curves:
            heading = f"Updates of the target ({run.record['dataset']})"
            caption = "Of all samples that were clustered, whenever the target was updated."
            figure = plots.by_refresh(heading, curves)
            yield Drawing(f"target_{models[0].name}", heading, caption, figure, about="training")
        weights = {
            model.title: model.evaluation.pictures["own"]["weights"]
            for model in models
            if model.settings["weighting"]["enabled"] and model.evaluation and "own" in model.evaluation.pictures
        }
        if weights:
            heading = f"Weights of a code's numbers in each cluster ({run.record['dataset']})"
            caption = "The counterpart of EDCWRN's Figure 7. A cluster's weights sum to 1."
            yield Drawing(f"weights_{models[0].name}", heading, caption, plots.code_weights(heading, weights))


def _refreshes(model: ReportedModel) -> list[Mapping[str, Any]]:
    return [line for line in model.log if line["kind"] == "refresh"]


def _cells(refreshes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    last = refreshes[-1]
    return (str(len(refreshes)), *(f"{100 * last[name]:.2f} %" if name in last else "" for name in MEASURES))


def _curves(model: ReportedModel) -> dict[str, tuple[list[int], list[float]]]:
    curves = {}
    for name, title in MEASURES.items():
        lines = [line for line in _refreshes(model) if name in line]
        if lines:
            curves[title] = ([line["step"] for line in lines], [line[name] for line in lines])
    return curves


REPORT = EdcwrnReport()
