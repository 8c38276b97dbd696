"""Curves by epoch or by trial carry the numbers they were given: read back from the figure's own objects."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from moe_dist.plots.style import style
from moe_dist.plots.training import curves_of_models, score_curves, training_curves


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with style():
        yield


def test_epochs_run_through_the_stages_and_a_step_logged_twice_counts_once() -> None:
    def line(stage: str, epoch: int, step: int, value: float, **more: float) -> dict[str, object]:
        return {"stage": stage, "epoch": epoch, "step": step, "loss/a": value} | more

    log = [
        line("alone", 0, 1, 4.0),
        line("alone", 0, 2, 2.0),
        line("alone", 0, 2, 2.0, **{"val/top1": 0.5, "val/loss": 1.0}),
        line("joint", 0, 3, 1.0, **{"val/top1": 0.9, "val/loss": 0.5}),
    ]
    losses, accuracy = training_curves("t", log).axes
    assert losses.lines[0].get_xydata().tolist() == [[1, 3.0], [2, 1.0]]
    assert accuracy.lines[0].get_xydata().tolist() == [[1, 0.5], [2, 0.9]]
    assert [text.get_text().strip() for text in accuracy.texts] == ["alone", "joint"]


def test_curves_without_a_validation_are_the_loss_terms_alone() -> None:
    log = [
        {"kind": kind, "stage": "joint", "epoch": epoch, "step": epoch, "loss/cross_entropy": 2.0 - epoch}
        for epoch in range(2)
        for kind in ("step", "epoch")
    ]
    (axes,) = training_curves("Training", log).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["cross_entropy"]
    assert axes.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]


def test_a_loss_term_of_a_single_epoch_is_a_point() -> None:
    log = [{"kind": "epoch", "stage": "features", "epoch": epoch, "step": epoch, "loss/a": 1.0} for epoch in range(2)]
    log[1]["loss/b"] = 2.0
    (axes,) = training_curves("Training", log).axes
    assert [line.get_marker() for line in axes.lines[:2]] == ["", "o"]


def test_the_median_of_scores_is_drawn_where_all_studies_have_one() -> None:
    curves = [([1, 2, 3], [0.1, 0.2, 0.9]), ([1, 2], [0.3, 0.8]), ([2, 1], [0.4, 0.2])]
    (axes,) = score_curves("Scores", "trials", curves).axes
    *thin, median = axes.lines
    assert [line.get_xydata().tolist() for line in thin] == [[[x, y] for x, y in zip(*curve)] for curve in curves]
    # At 1: 0.1, 0.3, 0.2; at 2: 0.2, 0.8, 0.4.
    assert median.get_xydata().tolist() == [[1, 0.2], [2, 0.4]]
    assert axes.get_xlabel() == "trials"


def test_all_models_share_one_plot_each_in_its_colour_with_its_own_validation() -> None:
    def log(loss: float, **validation: float) -> list[dict[str, object]]:
        return [{"stage": "joint", "epoch": 0, "step": 1, "loss": loss} | validation]

    models = {"A": log(2.0, **{"val/loss": 3.0, "val/top1": 0.5}), "B": log(4.0)}
    losses, scores = curves_of_models("t", models).axes
    drawn = [(line.get_ydata(), line.get_linestyle(), line.get_color()) for line in losses.lines]
    assert [list(values) for values, _, _ in drawn] == [[2.0], [3.0], [4.0], []]
    assert [style for _, style, _ in drawn[:2]] == ["-", "--"] and drawn[0][2] == drawn[1][2] != drawn[2][2]
    assert [line.get_xydata().tolist() for line in scores.lines] == [[[1, 0.5]]]
    assert scores.get_title(loc="left") == "Top-1 accuracy on the validation split"


def test_models_without_a_validation_have_one_panel() -> None:
    (axes,) = curves_of_models("t", {"A": [{"stage": "joint", "epoch": 0, "step": 1, "loss": 2.0}]}).axes
    assert axes.get_title(loc="left") == "Loss"
