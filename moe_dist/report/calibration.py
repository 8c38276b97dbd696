"""What a report says of probabilities: calibration, with a temperature and without, and the price of rejecting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moe_dist.metrics.calibration import BINS, calibration_error, kept_above, reliability
from moe_dist.plots.calibration import reliability_diagram
from moe_dist.plots.drawing import Drawing
from moe_dist.plots.tables import ABSENT, Column, Row, Table
from moe_dist.report.run import Evaluation, ModelRun, RunDirectory
from moe_dist.report.tables import percent

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def calibration_metrics(evaluation: Evaluation) -> Iterator[tuple[str, float]]:
    """The calibration error on the test split; the temperature that validation gave, and the error under it."""
    yield "ece", calibration_error(evaluation.probabilities(), evaluation.right)
    if evaluation.temperature is not None:
        yield "temperature", evaluation.temperature
        yield "ece_calibrated", calibration_error(evaluation.probabilities(evaluation.temperature), evaluation.right)


def rejection_table(run: RunDirectory) -> Table:
    """The share of test images that are kept above a threshold, and the top-1 of these, by threshold and model.

    Probabilities are at the temperature that validation gave, where there is one. The table may have no rows.
    """
    columns = [Column(model.title, name) for model, _ in run.classifying for name in ("coverage", "top-1")]
    rows = []
    for threshold in THRESHOLDS if columns else ():
        cells: list[str] = []
        for _, evaluation in run.classifying:
            probabilities = evaluation.probabilities(evaluation.temperature or 1.0)
            coverage, right = kept_above(probabilities, evaluation.right, threshold)
            cells += [percent(coverage), ABSENT if right is None else percent(right)]
        rows.append(Row(f"{threshold:g}", tuple(cells)))
    note = (
        "Coverage: the share of test images whose class has that probability or more; top-1 of these alone. "
        "`moe-dist predict --reject` takes the threshold."
    )
    if calibrated := [model.title for model, evaluation in run.classifying if evaluation.temperature is not None]:
        note += f" At the temperature fitted on validation (--calibrated): {', '.join(calibrated)}."
    return Table(
        title=f"Rejecting what the model is unsure of ({run.test_split})",
        columns=tuple(columns),
        rows=tuple(rows),
        notes=(note,),
        corner="Threshold",
        about="classes",
    )


def draw_reliability(run: RunDirectory, model: ModelRun, evaluation: Evaluation) -> Drawing:
    """The reliability diagram of a model that predicts classes."""
    series = {"as trained": evaluation.probabilities()}
    if evaluation.temperature is not None:
        series[f"at temperature {evaluation.temperature:.2f}"] = evaluation.probabilities(evaluation.temperature)
    heading = f"{model.title}: do probabilities mean what they say ({run.test_split})"
    errors = {name: calibration_error(values, evaluation.right) for name, values in series.items()}
    said = ", ".join(f"{error:.3f} {name}" for name, error in errors.items())
    fitted = " The temperature was fitted on the validation split." if len(series) > 1 else ""
    return Drawing(
        f"reliability_{model.name}",
        heading,
        f"Above, the share of right answers among images of a probability ({BINS} bins); below the diagonal, the model "
        f"is too sure. Below, how many images have it. Expected calibration error: {said}.{fitted}",
        reliability_diagram(heading, {name: _bins(values, evaluation.right) for name, values in series.items()}),
        about="classes",
    )


def _bins(probabilities: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    found = reliability(probabilities, right)
    return found.probability, found.right, found.share
