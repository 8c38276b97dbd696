"""Grids small enough for a test: two sparse mixtures on digits at 8 pixels, an epoch of a few steps."""

from __future__ import annotations

from typing import Any

from moe_dist.job import Job, parse_job

SPARSE: dict[str, Any] = {"name": "sparse_moe", "trunk": [4], "experts": 2, "hidden": 8, "batch_size": 32, "epochs": 2}
SPARSE |= {"optimiser": {"kind": "adam", "learning_rate": 0.02}}
DATA = {"dataset": "digits", "image_size": 8, "max_train_images": 200, "max_test_images": 60}
GRID: dict[str, Any] = {
    "data": {"all": {}, "half": {"max_train_images": 100}},
    "seeds": [0, 1, 2],
    "against": {"method": "narrow"},
    "metrics": ["top1", "balanced_accuracy"],
}


def small_grid(grid: dict[str, Any] | None = None, **changes: Any) -> Job:
    """2 methods x 2 data x 3 seeds; `grid` and `changes` are fields of the section and of the job that differ."""
    content: dict[str, Any] = {"name": "small-grid", "kind": "reproduce", "data": DATA}
    content["methods"] = {"narrow": SPARSE, "wide": SPARSE | {"hidden": 16}}
    return parse_job(content | {"grid": GRID | (grid or {})} | changes, "small-grid.yaml")
