"""The report's part of the method that clusters: how many labels each refresh changed, and the centres of the codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun
from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import Column, Row, Table
from moe_dist.plots.training import score_curves


class ClustersReport(MethodReport):
    """A number, a row, a table and a figure."""

    rows = (("spread", "Spread of the codes", "{:.2f}".format),)

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """What the step left."""
        if "codes" in model.steps:
            yield "spread", model.steps["codes"].values["spread"]

    def tables(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Table]:
        """The centres' distances from 0."""
        for model in models:
            if model.evaluation and "own" in model.evaluation.pictures:
                norms = (model.evaluation.pictures["own"]["centres"] ** 2).sum(1) ** 0.5
                rows = tuple(Row(str(cluster), (f"{norm:.2f}",)) for cluster, norm in enumerate(norms))
                yield Table(f"{model.title}: centres", (Column("", "distance from 0"),), rows, corner="Cluster")

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """The labels that changed from one refresh to the next."""
        for model in models:
            refreshes = [line for line in model.log if line["kind"] == "refresh"]
            if refreshes:
                curve = ([line["step"] for line in refreshes], [line["changed"] for line in refreshes])
                heading = f"{model.title}: labels that changed ({run.record['dataset']})"
                figure = score_curves(heading, "step", [curve])
                yield Drawing(f"changed_{model.name}", heading, "As shares of all labels, at each refresh.", figure)


REPORT = ClustersReport()
