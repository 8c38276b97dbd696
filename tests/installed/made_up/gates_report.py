"""The report's part of the gated method: the mean weight of each expert of each gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun
from moe_dist.plots.tables import Column, Row, Table


class GatesReport(MethodReport):
    """A row of the results table and a table of its own."""

    rows = (("largest_weight", "Largest mean weight of an expert", "{:.2f}".format),)

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """The largest mean weight over all gates: 1 where a gate gives every image to the same expert."""
        if model.evaluation:
            yield "largest_weight", float(max(gate.mean(0).max() for gate in model.evaluation.gates.values()))

    def tables(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Table]:
        """Mean weights over the test images, a row per gate."""
        for model in models:
            if model.evaluation:
                means = {name: gate.mean(0) for name, gate in model.evaluation.gates.items()}
                columns = tuple(Column("expert", str(expert)) for expert in range(len(next(iter(means.values())))))
                rows = tuple(Row(name, tuple(f"{weight:.2f}" for weight in mean)) for name, mean in means.items())
                yield Table(f"{model.title}: mean gate weights", columns, rows, corner="Gate")


REPORT = GatesReport()
