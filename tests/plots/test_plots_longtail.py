"""The figures of long-tailed sets carry the numbers they were given: read back from the figure's own objects."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from matplotlib.colors import to_hex

from moe_dist.plots import longtail
from moe_dist.plots.style import COLOURS, style


@pytest.fixture(autouse=True)
def in_style() -> Iterator[None]:
    with style():
        yield


def test_a_schedule_that_was_not_run_stays_white() -> None:
    axes = longtail.schedule_grid("h", {(0, 60): 0.5, (0, 120): 0.6, (30, 60): 0.55}).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array().filled(-1), [[50, 60], [55, -1]])
    assert [text.get_text() for text in axes.texts] == ["50.00", "60.00", "55.00"]


def test_gradient_shares_are_the_lines_of_their_experts() -> None:
    log = [
        {"kind": "epoch", "stage": "features", "epoch": epoch, "step": epoch, "gradient_share/expert_0": share}
        | {"gradient_share/expert_1": 1 - share}
        for epoch, share in enumerate((0.25, 0.5))
    ]
    log.append({"kind": "epoch", "stage": "classifiers", "epoch": 0, "step": 3})
    (axes,) = longtail.gradient_shares("h", {"ICL": log}).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["expert 0"] == [[1, 0.25], [2, 0.5]] and lines["expert 1"] == [[1, 0.75], [2, 0.5]]


def test_divergence_goes_by_class_size() -> None:
    (axes,) = longtail.divergence_by_class("h", np.array([5, 50, 20]), {"A": np.array([0.1, 0.2, 0.3])}).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.3], [3, 0.1]]


def test_accuracy_stands_under_its_class_and_bars_at_the_groups_means() -> None:
    groups = {"many": np.array([1, 3]), "few": np.array([0, 2])}
    accuracy = np.array([0.2, 0.9, np.nan, 0.7])
    figure = longtail.accuracy_under_profile("h", np.array([10, 400, 4, 300]), {"A": accuracy}, groups)
    marks, *bars = figure.axes[1].collections
    places = [offset.tolist() for offset in np.ma.getdata(marks.get_offsets()) if not np.isnan(offset[1])]
    assert places == [[3, 0.2], [1, 0.9], [2, 0.7]]
    assert [bar.get_segments()[0][0, 1] for bar in bars] == pytest.approx([0.8, 0.2])
    steps = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]
    assert steps == [[400, 300], [10, 4]]


def test_ten_classes_of_features_are_told_apart() -> None:
    labels = np.arange(10).repeat(2)
    figure = longtail.feature_maps("h", {"A": {"points": np.ones((20, 2)), "labels": labels}}, list("abcdefghij"))
    looks = {
        (to_hex(marks.get_facecolor()[0]), marks.get_paths()[0].vertices.tobytes())
        for marks in figure.axes[0].collections
    }
    assert len(looks) == 10 > len(COLOURS)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list("abcdefghij")


def test_each_map_is_scaled_by_its_own_maximum_and_an_empty_one_shows_the_image() -> None:
    looked_at = {
        "images": np.zeros((1, 3, 8, 8), np.uint8),
        "cams": np.array([[[[0, 4], [2, 0]], [[0, 0], [0, 0]]]], np.float32),
        "predicted": np.array([[1, 0]]),
    }
    image, first, second = longtail.grad_cam("h", looked_at, ["an ant"], ["ant", "bee"]).axes
    assert len(image.images) == 1 and image.get_ylabel() == "an ant"
    assert first.images[1].get_array().tolist() == [[0, 1], [0.5, 0]] and first.get_xlabel() == "bee"
    assert np.asarray(second.images[1].get_alpha()).tolist() == [[0, 0], [0, 0]] and second.get_xlabel() == "ant"
