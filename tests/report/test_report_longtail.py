"""Reports of long-tail methods: groups of classes, experts by themselves, and the figures of both."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from synthetic_longtail import write_longtail_run

from moe_dist.plots.style import style
from moe_dist.report.build import build_report, flat_metrics
from moe_dist.report.longtail import draw_longtail
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
    """The headings of the long-tail figures and of the methods' own by name."""
    run = RunDirectory(path)
    with style():
        own = [drawing for report, models in run.reports() for drawing in report.drawings(run, models)]
        return {drawing.name: drawing.heading for drawing in [*draw_longtail(run), *own]}


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
    headings = re.findall(r'role="img" aria-label="([^"]*)"', (longtail / "report.html").read_text())
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
