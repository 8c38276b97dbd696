"""Reports of long-tail methods: groups of classes, experts by themselves, and the figures of both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex
from synthetic_longtail import write_longtail_run

from moe_dist.plots import longtail as plots
from moe_dist.plots.style import COLOURS, style
from moe_dist.report.build import build_report, flat_metrics
from moe_dist.report.longtail_figures import draw_longtail
from moe_dist.report.run import RunDirectory
from moe_dist.report.tables import experts_table, results_table

METHODS = {"icl": {"name": "icl"}, "cross_entropy": {"name": "cross_entropy"}}
COUNTS = (200, 120, 60, 30, 10, 5)
GROUPS = {"many": (0, 1), "medium": (2, 3), "few": (4, 5)}


@pytest.fixture(scope="module")
def longtail(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_longtail_run(tmp_path_factory.mktemp("longtail") / "run", METHODS, COUNTS)
    build_report(path)
    return path


def drawn(path: Path) -> dict[str, str]:
    """The headings of the long-tail figures by name."""
    with style():
        return {drawing.name: drawing.heading for drawing in draw_longtail(RunDirectory(path))}


def test_metrics_by_group_and_expert_are_counted_image_by_image(longtail: Path) -> None:
    metrics = json.loads((longtail / "metrics.json").read_text())
    with np.load(longtail / "icl/evaluation/predictions.npz") as arrays:
        labels, choices, log_probs = (arrays[name] for name in ("labels", "experts_argmax", "log_probs"))
    for group, classes in GROUPS.items():
        rows = [row for row, label in enumerate(labels) if label in classes]
        right = [choices[row, 1] == labels[row] for row in rows]
        assert metrics[f"icl/expert1_top1_{group}"] == sum(right) / len(rows)
        right = [log_probs[row].argmax() == labels[row] for row in rows]
        assert metrics[f"icl/top1_{group}"] == sum(right) / len(rows)
    assert metrics["icl/expert2_top1"] == np.mean(choices[:, 2] == labels)
    assert metrics["icl/experts_divergence"] > 0


def test_tables_tell_groups_and_experts(longtail: Path) -> None:
    run = RunDirectory(longtail)
    metrics = flat_metrics(run) | {"icl/top1_few": 0.125, "icl/expert2_top1_few": 0.0625}
    results = {row.heading: row.cells for row in results_table(run, metrics).rows}
    assert results["Top-1, few"][0] == "12.50 %" and {"Top-1, many", "Top-1, medium"} <= results.keys()
    table = experts_table(run, metrics)
    assert [column.name for column in table.columns] == ["all", "many", "medium", "few"]
    assert [row.heading for row in table.rows] == [
        f"{model}{who}" for model in ("icl", "cross entropy") for who in ("", ", expert 0", ", expert 1", ", expert 2")
    ]
    assert table.rows[3].cells[3] == "6.25 %" and table.rows[0].cells[3] == "12.50 %"
    assert "Experts by themselves" in (longtail / "results.md").read_text()


def test_a_balanced_set_has_experts_and_no_groups(tmp_path: Path) -> None:
    path = write_longtail_run(tmp_path / "run", {"icl": {"name": "icl"}}, (200, 150, 90), pictures=False)
    run = RunDirectory(path)
    metrics = flat_metrics(run)
    assert "icl/expert0_top1" in metrics and not any("_many" in key for key in metrics)
    assert [column.name for column in experts_table(run, metrics).columns] == ["all"]
    assert "accuracy_by_class_size" not in drawn(path) and "divergence_of_experts" in drawn(path)


def test_every_figure_says_data_and_number(longtail: Path) -> None:
    files = {path.stem for path in (longtail / "figures").iterdir()}
    assert files >= {
        "accuracy_by_class_size",
        "gradient_shares",
        "divergence_of_experts",
        "tsne",
        "grad_cam_icl",
        "grad_cam_cross_entropy",
    }
    headings = re.findall(r'alt="([^"]*)"', (longtail / "report.html").read_text())
    assert len(headings) == len(files) and all("cifar100" in heading for heading in headings)
    for data in ("6 classes, n = 240", "training part, n = 425", "test split, n = 60)", "test split, n = 6)"):
        assert any(data in heading for heading in headings), data


def test_what_a_run_did_not_leave_is_not_drawn(tmp_path: Path) -> None:
    path = write_longtail_run(tmp_path / "run", {"icl": {"name": "icl"}}, COUNTS, pictures=False)
    (path / "icl/metrics.jsonl").unlink()
    predictions = path / "icl/evaluation/predictions.npz"
    with np.load(predictions) as arrays:
        old = {name: arrays[name] for name in ("labels", "log_probs")}
    np.savez(predictions, **old)
    record = json.loads((path / "run.json").read_text())
    assert list(drawn(path)) == ["accuracy_by_class_size"]
    del record["class_counts"]
    (path / "run.json").write_text(json.dumps(record))
    assert drawn(path) == {} and experts_table(RunDirectory(path), {}).rows == ()


def test_schedules_of_equal_settings_make_a_grid(tmp_path: Path) -> None:
    def grids(name: str, *varied: tuple[int, int]) -> list[str]:
        methods = {f"icl_{ad}_{cl}": {"name": "icl", "experts": 3, "t_ad": ad, "t_cl": cl} for ad, cl in varied}
        other = {"two": {"name": "icl", "experts": 2, "t_ad": 5, "t_cl": 5}}
        path = write_longtail_run(tmp_path / name, methods | other, (200, 20), pictures=False)
        return [figure for figure in drawn(path) if figure.startswith("schedule")]

    assert grids("grid", (0, 60), (0, 120), (30, 60)) == ["schedule_grid_0"]
    assert grids("line", (0, 60), (0, 120)) == [], "t_ad is the same in both"


def test_a_schedule_that_was_not_run_stays_white() -> None:
    with style():
        axes = plots.schedule_grid("h", {(0, 60): 0.5, (0, 120): 0.6, (30, 60): 0.55}).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array().filled(-1), [[50, 60], [55, -1]])
    assert [text.get_text() for text in axes.texts] == ["50.00", "60.00", "55.00"]


def test_gradient_shares_are_the_lines_of_their_experts() -> None:
    log = [
        {"kind": "epoch", "stage": "features", "epoch": epoch, "step": epoch, "gradient_share/expert_0": share}
        | {"gradient_share/expert_1": 1 - share}
        for epoch, share in enumerate((0.25, 0.5))
    ]
    log.append({"kind": "epoch", "stage": "classifiers", "epoch": 0, "step": 3})
    with style():
        (axes,) = plots.gradient_shares("h", {"ICL": log}).axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["expert 0"] == [[1, 0.25], [2, 0.5]] and lines["expert 1"] == [[1, 0.75], [2, 0.5]]


def test_divergence_goes_by_class_size() -> None:
    with style():
        (axes,) = plots.divergence_by_class("h", np.array([5, 50, 20]), {"A": np.array([0.1, 0.2, 0.3])}).axes
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.2], [2, 0.3], [3, 0.1]]


def test_accuracy_stands_under_its_class_and_bars_at_the_groups_means() -> None:
    groups = {"many": np.array([1, 3]), "few": np.array([0, 2])}
    accuracy = np.array([0.2, 0.9, np.nan, 0.7])
    with style():
        figure = plots.accuracy_under_profile("h", np.array([10, 400, 4, 300]), {"A": accuracy}, groups)
    marks, *bars = figure.axes[1].collections
    places = [offset.tolist() for offset in np.ma.getdata(marks.get_offsets()) if not np.isnan(offset[1])]
    assert places == [[3, 0.2], [1, 0.9], [2, 0.7]]
    assert [bar.get_segments()[0][0, 1] for bar in bars] == pytest.approx([0.8, 0.2])
    steps = [patch.get_data().values.tolist() for patch in figure.axes[0].patches]
    assert steps == [[400, 300], [10, 4]]


def test_ten_classes_of_features_are_told_apart() -> None:
    labels = np.arange(10).repeat(2)
    with style():
        figure = plots.feature_maps("h", {"A": {"points": np.ones((20, 2)), "labels": labels}}, list("abcdefghij"))
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
    with style():
        image, first, second = plots.grad_cam("h", looked_at, ["an ant"], ["ant", "bee"]).axes
    assert len(image.images) == 1 and image.get_ylabel() == "an ant"
    assert first.images[1].get_array().tolist() == [[0, 1], [0.5, 0]] and first.get_xlabel() == "bee"
    assert np.asarray(second.images[1].get_alpha()).tolist() == [[0, 0], [0, 0]] and second.get_xlabel() == "ant"
