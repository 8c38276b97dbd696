"""What a report says of probabilities, against loops over the images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import write_run

from moe_dist.plots.style import save_figure, style
from moe_dist.report.build import flat_metrics
from moe_dist.report.calibration import THRESHOLDS, draw_reliability, rejection_table
from moe_dist.report.run import RunDirectory

TEMPERATURE = 2.5


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Two models, of which only the first one's evaluation fitted a temperature."""
    path = write_run(tmp_path / "run", [str(digit) for digit in range(10)], methods=("dfcp", "dense"))
    about = json.loads((path / "dfcp/evaluation/evaluation.json").read_text())
    about |= {
        "evaluated": "checkpoint_2",
        "calibration": {"checkpoint_1": None, "checkpoint_2": {"temperature": TEMPERATURE}},
    }
    (path / "dfcp/evaluation/evaluation.json").write_text(json.dumps(about))
    return RunDirectory(path)


def predicted(run: RunDirectory, model: str, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the likeliest class and whether it is right, image by image."""
    with np.load(run.path / model / "evaluation/predictions.npz") as arrays:
        labels, log_probs = arrays["labels"], arrays["log_probs"].astype(np.float64)
    shares, right = [], []
    for row, label in zip(log_probs, labels):
        powers = np.exp(row / temperature)
        shares.append(powers.max() / powers.sum())
        right.append(row.argmax() == label)
    return np.array(shares), np.array(right)


def error_of(shares: np.ndarray, right: np.ndarray) -> float:
    total = 0.0
    for number in range(15):
        inside = (shares > number / 15) & (shares <= (number + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(shares[inside].mean() - right[inside].mean())
    return total


def test_calibration_errors_and_the_temperature_are_metrics(run: RunDirectory) -> None:
    metrics = flat_metrics(run)
    assert metrics["dfcp/temperature"] == TEMPERATURE
    assert metrics["dfcp/ece"] == pytest.approx(error_of(*predicted(run, "dfcp", 1.0)))
    assert metrics["dfcp/ece_calibrated"] == pytest.approx(error_of(*predicted(run, "dfcp", TEMPERATURE)))
    assert "dense/ece" in metrics and "dense/ece_calibrated" not in metrics and "dense/temperature" not in metrics


def test_the_table_of_thresholds_says_coverage_and_accuracy(run: RunDirectory) -> None:
    """At the temperature, where there is one."""
    table = rejection_table(run)
    assert [row.heading for row in table.rows] == [f"{threshold:g}" for threshold in THRESHOLDS]
    for model, temperature, first in (("dfcp", TEMPERATURE, 0), ("dense", 1.0, 2)):
        shares, right = predicted(run, model, temperature)
        for row, threshold in zip(table.rows, THRESHOLDS):
            kept = shares >= threshold
            assert row.cells[first] == f"{100 * kept.mean():.2f} %"
            assert row.cells[first + 1] == (f"{100 * right[kept].mean():.2f} %" if kept.any() else "–")
    assert "(--calibrated): DFCP-MoE." in table.notes[0] and "dense" not in table.notes[0]


def test_the_diagram_is_an_svg_that_is_the_same_every_time(run: RunDirectory, tmp_path: Path) -> None:
    written = []
    for name in ("a.svg", "b.svg"):
        with style():
            drawing = draw_reliability(run, *run.classifying[0])
            save_figure(drawing.figure, tmp_path / name, "svg")
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1] and b"<svg" in written[0][:1000]
    assert "at temperature 2.50" in drawing.caption
