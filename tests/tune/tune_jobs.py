"""Searches small enough for a test: DFCP's experts and managing network, a traditional mixture, a dense model, ICL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

from small_jobs import dfcp, quiet, traditional

from moe_dist.job import Job, parse_job
from moe_dist.run.run import run_job

EXPERT_SPACE = {"conv1": {"low": 2, "high": 4}, "optimiser": ["sgd", "adam"]}
GATE_SPACE = {"gate.optimiser.learning_rate": {"low": 1e-3, "high": 1e-2, "log": True}, "gate.dropout": [0.0, 0.5]}
FEW_DIGITS = {"dataset": "digits", "image_size": 16, "max_train_images": 100, "max_test_images": 20}
ONE_EPOCH = {"epochs": 1, "batch_size": 48, "learning_rate": 0.05, "warmup_epochs": 0, "augment": {}}


def dfcp_search(method: dict[str, Any] | None = None, **tune: Any) -> Job:
    """Two of the ten experts, 2 trials of 2 epochs each; `method` changes DFCP's fields, `tune` the search's."""
    content = dfcp(name="tiny-tune").model_dump(mode="json") | {"kind": "tune"}
    content["method"] |= method or {}
    settings = {"trials": 2, "batch": 2, "epochs": 2, "experts": [0, 3], "space": EXPERT_SPACE, "compare_seeds": 0}
    return parse_job(content | {"tune": settings | tune}, "tiny.yaml")


def mixture_search(**tune: Any) -> Job:
    """A traditional mixture, which has no steps before training."""
    content = traditional(name="tiny-mixture").model_dump(mode="json") | {"kind": "tune"}
    return parse_job(content | {"tune": {"of": ["method"], "trials": 2, "batch": 2} | tune}, "tiny.yaml")


def dense_search(**tune: Any) -> Job:
    """A small torchvision network from scratch, one epoch a trial."""
    method = {"name": "dense", "backbone": "mobilenet_v3_small", "weights": None, "image_size": 32, "epochs": 1}
    content = {"name": "tiny-dense", "kind": "tune", "data": FEW_DIGITS, "method": method}
    return parse_job(content | {"tune": {"of": ["method"], "trials": 2, "batch": 2} | tune}, "tiny.yaml")


def icl_search(**tune: Any) -> Job:
    """Two experts of width 2, an epoch of each of the two stages a trial."""
    method = {"name": "icl", "network": {"width": 2}, "experts": 2, "t_ad": 0, "t_cl": 0}
    method |= {"features": ONE_EPOCH, "classifiers": ONE_EPOCH}
    content = {"name": "tiny-icl", "kind": "tune", "data": FEW_DIGITS, "method": method}
    return parse_job(content | {"tune": {"of": ["method"], "trials": 2, "batch": 2} | tune}, "tiny.yaml")


def run(job: Job, folder: Path, launcher: str = "local") -> dict[str, Any]:
    """Run the search, without a report, which takes longer; its results.json."""
    with patch("moe_dist.report.build.build_report"):
        run_job(job, folder, launcher, quiet())
    (label,) = job.models
    return json.loads((folder / label / "search" / "results.json").read_text())
