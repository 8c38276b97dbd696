"""The drawings carry the numbers they were given: read back from the figure's own objects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.figure import Figure

from moe_dist.plots import charts
from moe_dist.plots.style import style


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with style():
        yield


def points(figure: Figure) -> list[tuple[float, str]]:
    """(precision, class) of every mark, crosses included."""
    found = []
    for axes in figure.axes:
        names = [label.get_text() for label in axes.get_yticklabels()]
        for marks in axes.collections:
            offsets = np.ma.compress_rows(marks.get_offsets())
            found += [(round(float(x), 6), names[round(float(y))]) for x, y in offsets]
    return found


def test_precision_marks_stand_in_the_row_of_their_class() -> None:
    a, b = np.array([1.0, 0.9, 0.8]), np.array([0.95, np.nan, 0.85])
    figure = charts.precision_by_class("p", ["ant", "bee", "cat"], {"A": a, "B": b})
    # The axis starts at the multiple of 0.05 below the smallest precision, 0.8: there the cross of B's `bee` stands.
    assert set(points(figure)) == {
        (1.0, "ant"),
        (0.9, "bee"),
        (0.8, "cat"),
        (0.95, "ant"),
        (0.85, "cat"),
        (0.75, "bee"),
    }
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["A", "B"]


@pytest.mark.parametrize(("classes", "panels"), [(10, 1), (24, 1), (43, 2), (100, 3)])
def test_many_classes_are_divided_over_panels_and_all_are_named(classes: int, panels: int) -> None:
    names = [f"sign {c}" for c in range(classes)]
    figure = charts.precision_by_class("p", names, {"A": np.linspace(0.5, 1, classes)})
    assert len(figure.axes) == panels
    assert [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()] == names


def test_confusion_shows_counts_and_shares_of_the_true_class() -> None:
    figure = charts.confusion("c", np.array([[3, 1], [0, 0]]), ["ant", "bee"], "predicted")
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["1", "3"]
    assert figure.axes[0].images[0].get_array().tolist() == [[0.75, 0.25], [0, 0]]


def test_gate_load_is_the_mean_weight_over_all_and_by_class() -> None:
    gate = np.array([[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]])
    figure = charts.gate_load("g", gate, np.array([0, 0, 2]), ["ant", "bee", "cat"])
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0.5, 0.5])
    by_class = figure.axes[1].images[0].get_array()
    assert by_class[[0, 2]].tolist() == [pytest.approx([0.7, 0.3]), pytest.approx([0.1, 0.9])]
    assert np.ma.getmaskarray(by_class)[1].all()


def test_radius_scan_marks_the_chosen_radius_and_leaves_a_gap_without_an_index() -> None:
    rows = [
        {"radius": 0.1, "davies_bouldin": None, "coverage": 0.2, "purity": 1.0},
        {"radius": 0.2, "davies_bouldin": 0.7, "coverage": 0.9, "purity": 0.8},
    ]
    index, shares = charts.radius_scan("r", rows, 0.2, 1.5).axes
    assert np.isnan(index.lines[0].get_ydata()[0]) and index.lines[0].get_ydata()[1] == 0.7
    assert [line.get_label() for line in index.lines] == ["second stage", "first stage", "chosen: 0.2"]
    assert [line.get_ydata()[1] for line in shares.lines[:2]] == [0.9, 0.8]
    assert len(charts.radius_scan("r", rows, None, 1.5).axes[0].lines) == 2


def test_cluster_sizes_are_the_bars() -> None:
    axes = charts.class_bars("s", np.array([3, 1200]), ["ant", "bee"], "class").axes[0]
    assert [bar.get_height() for bar in axes.patches] == [3, 1200]
    assert [text.get_text() for text in axes.texts] == ["3", "1,200"]
