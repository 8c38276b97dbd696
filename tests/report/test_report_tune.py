"""report/tune.py: the tables and figures of a made-up search."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from moe_dist.report.build import build_report
from moe_dist.report.run import RunDirectory
from moe_dist.report.tune import mean_importance, search_tables, searches

CONFIGURATION = {
    "conv1": 6, "conv2": 16, "fc1": 122, "fc2": 85, "optimiser": "sgd", "learning_rate": 0.004, "batch_size": 16,
}  # fmt: skip


def trial(number: int, state: str, curve: list, reason: str = "") -> dict:
    return {"number": number, "values": {}, "state": state, "reason": reason, "seconds": 1.0, "curve": curve}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """Expert 0 has a best trial, a stopped and a failed one; expert 1 has nothing that was trained to the end."""
    job = {"name": "t", "kind": "tune", "title": "", "seed": 0, "workers": 1, "method": {"name": "dfcp"}, "methods": {}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    record = {
        "status": "finished", "started": "2026-01-01T10:00:00", "seconds": 9.0, "command": "moe-dist run",
        "version": "0", "hardware": "a machine", "dataset": "digits", "split_digest": "0", "classes": ["stop", "yield"],
        "counts": {"train": 10, "val": 70, "test": 5}, "class_counts": [5, 5],
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(record))
    best = trial(0, "finished", [[1, 0.5, 0.4], [2, 0.9, 0.1]])
    diverged = trial(2, "failed", [], "diverged <b>")
    first = {
        "title": "stop", "samples": 1234, "best": 0, "configuration": CONFIGURATION, "compared": [],
        "importance": {"conv1": 0.75, "fc1": 0.25},
        "trials": [best, trial(1, "stopped", [[1, 0.2, 0.9]]), diverged],
    }  # fmt: skip
    second = first | {"title": "yield", "best": None, "configuration": None, "importance": {}, "trials": [diverged]}
    compared = {"studies": 2, "default": 0.8, "best": 0.85, "gain": 0.05, "gain_low": 0.01, "gain_high": 0.09}
    content = {"studies": {"0": first, "1": second}, "comparison": compared, "scored_by": "F1 of mine"}
    folder = tmp_path / "dfcp" / "search"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(content | {"settings": {"compare_seeds": 1}}))
    return RunDirectory(tmp_path)


def test_the_best_configurations_stand_in_table_1s_layout(run):
    best, comparison, importance, failures = search_tables(run)
    assert [column.name for column in best.columns] == [
        "samples", "FC1", "FC2", "Learning rate", "Optimiser", "Batch size", "Conv1", "Conv2", "F1", "trials",
        "stopped",
    ]  # fmt: skip
    assert best.rows[0].heading == "0 stop"
    assert best.rows[0].cells == ("1,234", "122", "85", "0.0040", "sgd", "16", "6", "16", "0.9000", "3", "1")
    assert best.rows[1].cells == ("1,234", *["–"] * 8, "1", "0")
    assert comparison.rows[0].cells == ("0.8000", "0.8500", "+0.0500 (+0.0100 to +0.0900)")
    assert importance.rows[0].cells == ("0.750",)
    assert failures.title == "Trials that failed: 2 of 4"
    assert failures.rows[0].cells == ("2",)


def test_importance_is_the_mean_over_studies_that_have_one(run):
    (record,) = searches(run)
    assert mean_importance(record) == {"conv1": 0.75, "fc1": 0.25}


def test_the_page_has_curves_and_progress_and_escapes_reasons(run):
    page = build_report(run.path).read_text()
    assert "Learning curves of the best trials" in page
    assert "Best score so far" in page
    assert "diverged &lt;b&gt;" in page
    assert "Search on digits" in page
