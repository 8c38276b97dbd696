"""Multi-scale GMM-MoE's part of the report: superclasses, what the gates do, and where."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.methods.reporting import MethodReport, ReportedModel, ReportedRun
from moe_dist.metrics.classification import confusion_counts
from moe_dist.plots import charts, routing
from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import ABSENT, Column, Row, Table, percent

COLUMNS = {"entropy": "entropy", "separation": "separation", "blend": "a", "residual": "w_r", "weight": "its weight"}
"""Number in the log, after its tap -> its column's heading."""


class GmmMoeReport(MethodReport):
    """Superclass accuracy and confusion (Figure 6), responsibilities (Figure 7), and the gates' numbers."""

    papers = Path(__file__).with_name("paper.yaml")
    rows = (("superclass_top1", "Top-1 of superclasses", percent),)

    def numbers(self, run: ReportedRun, model: ReportedModel) -> Iterator[tuple[str, float]]:
        """How often the predicted class is of the true superclass."""
        if (found := _superclasses(run, model)) is not None:
            _, true, predicted = found
            yield "superclass_top1", float((true == predicted).mean())

    def tables(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Table]:
        """Every gate at the end of training."""
        for model in models:
            last: Mapping[str, Any] = next((line for line in reversed(model.log) if line["kind"] == "step"), {})
            taps = _taps(model)
            if not any(f"{tap}/entropy" in last for tap in taps):
                continue
            rows = []
            for tap in taps:
                loads = [last[key] for key in last if key.startswith(f"{tap}/gamma/")]
                cells = [f"{last[key]:.3f}" if (key := f"{tap}/{name}") in last else ABSENT for name in COLUMNS]
                rows.append(Row(tap, (*cells, f"{min(loads):.3f} to {max(loads):.3f}" if loads else ABSENT)))
            columns = (*(Column("", heading) for heading in COLUMNS.values()), Column("", "mean gamma"))
            notes = (
                "Of the last logged step. Entropy: share of the largest possible one. Separation: the means' mean "
                "distance in standard deviations. a: the conditional prior's share. Mean gamma: of the least and of "
                "the most used expert.",
            )
            yield Table(f"{model.title}: gates", columns, tuple(rows), notes, corner="Tap")

    def drawings(self, run: ReportedRun, models: Sequence[ReportedModel]) -> Iterator[Drawing]:
        """Superclass confusion, maps of responsibility beside Grad-CAM, and the gates by epoch."""
        for model in models:
            if (found := _superclasses(run, model)) is not None:
                yield _superclass_confusion(run, model, *found)
            if model.evaluation is not None and "own" in model.evaluation.pictures:
                yield from _responsibilities(run, model)
            taps = [tap for tap in _taps(model) if any(f"{tap}/entropy" in line for line in model.log)]
            if taps:
                heading = f"{model.title}: gates while training ({run.record['dataset']})"
                caption = (
                    "Means over each epoch's logged steps. Entropy is a share of the largest possible one: at 1 a gate "
                    "sends every place to all experts alike, at 0 to one."
                )
                figure = routing.gates_by_epoch(heading, model.log, taps)
                yield Drawing(f"gates_{model.name}", heading, caption, figure, about="experts")


def _taps(model: ReportedModel) -> list[str]:
    return [tap["at"] for tap in model.settings["taps"]]


def _superclasses(run: ReportedRun, model: ReportedModel) -> tuple[list[str], np.ndarray, np.ndarray] | None:
    """The superclasses' names, and of every test image the number of the true and of the predicted one [N]."""
    of_class = run.record.get("superclasses")
    if not of_class or model.evaluation is None:
        return None
    names = list(dict.fromkeys(of_class))
    numbers = np.array([names.index(name) for name in of_class])
    return names, numbers[model.evaluation.labels], numbers[model.evaluation.log_probs.argmax(1)]


def _superclass_confusion(
    run: ReportedRun, model: ReportedModel, names: list[str], true: np.ndarray, predicted: np.ndarray
) -> Drawing:
    heading = f"{model.title}: superclasses ({run.test_split})"
    counts = confusion_counts(true, predicted, len(names))
    return Drawing(
        f"superclasses_{model.name}",
        heading,
        "The counterpart of the GMM-MoE paper's Figure 6: the superclass of the predicted class. Colour follows the "
        "square root of the share.",
        charts.confusion(heading, counts, names, "superclass of the predicted class"),
        about="classes",
    )


def _responsibilities(run: ReportedRun, model: ReportedModel) -> Iterator[Drawing]:
    assert model.evaluation is not None
    pictures = model.evaluation.pictures
    own, looked_at = pictures["own"], pictures.get("grad_cam")
    largest = {tap: own[key] for number, tap in enumerate(_taps(model)) if (key := f"responsibility_{number}") in own}
    if looked_at is None or not largest:
        return
    heading = f"{model.title}: largest responsibilities ({run.test_split})"
    titles = [run.record["classes"][label] for label in looked_at["labels"]]
    cams = looked_at["cams"][:, 0]
    yield Drawing(
        f"responsibilities_{model.name}",
        heading,
        "The counterpart of the GMM-MoE paper's Figure 7: Grad-CAM of the true class on the fused map, and at every "
        "place of every tap the largest responsibility, from the image's lowest to its highest.",
        routing.responsibility_maps(heading, looked_at["images"], titles, cams, largest),
        about="experts",
    )


REPORT = GmmMoeReport()
