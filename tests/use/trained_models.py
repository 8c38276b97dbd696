"""A small finished run of every method of the registry, trained when a test first asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_data import built_data
from made_up_jobs import made_up
from run_folders import evaluation_of
from small_jobs import dfcp, quiet, sparse, traditional

import moe_dist.evaluate.predictions as predictions
import moe_dist.run.run as run_module
from moe_dist.data.opened.job_shards import shards_place
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.job import Job, parse_job
from moe_dist.places import cache_folder

DIGITS = {"dataset": "digits", "image_size": 16, "max_train_images": 120, "max_test_images": 40}
BRANCH = {"network": {"width": 2}, "experts": 2, "features": {"epochs": 1, "batch_size": 40, "warmup_epochs": 0}}
CLUSTERING = {"network": {"hidden": [16], "code": 4, "scaling": "none"}, "pretrain": {"steps": 4}, "steps": 4}
TAP = {"experts": 3, "dim": 8, "kernel": 1, "at": "blocks.2"}
STAGE = {"epochs": 1, "batch_size": 40}
GMM = {"backbone": "timm/test_efficientnet", "weights": None, "taps": [TAP], "width": 8, "anneal_epochs": 1}


def job_of(name: str, method: dict[str, Any], **data: Any) -> Job:
    """A job of the method `name` on digits; `data` changes the fields of its data."""
    content = {"name": "small", "kind": "train", "data": DIGITS | data, "method": {"name": name} | method}
    return parse_job(content, f"{name}.yaml")


BATCH = 24
"""Samples in a batch of the runs' evaluation: few, so that there are several batches and the last is not full."""
JOBS: dict[str, Job] = {
    "dfcp": dfcp(),
    "traditional_moe": traditional(epochs=1),
    "sparse_moe": sparse(epochs=1),
    "dense": job_of("dense", {"backbone": "resnet18", "weights": None, "epochs": 1}, image_size=32),
    "gmm_moe": job_of("gmm_moe", GMM | {"frozen": STAGE, "whole": STAGE}, image_size=32),
    **{name: job_of(name, BRANCH) for name in ("icl", "cross_entropy", "focal", "balanced_softmax", "ldam_drw")},
    **{name: job_of(name, BRANCH) for name in ("ride", "shike", "balpoe")},
    **{name: job_of(name, CLUSTERING, val_fraction=0) for name in ("edcwrn", "idec", "dec")},
    "made_up_clusters": made_up("made_up_clusters"),
    "made_up_gates": made_up("made_up_gates"),
}
"""A job of every method; a new method needs one here."""


class TrainedModels:
    """Runs of JOBS in a folder, each begun when it is first asked for. They have no report: it takes longer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self, method: str, job: Job | None = None) -> Path:
        """The run directory of the method's job, or of another `job` under the name `method`."""
        run = self._folder / method
        if not (run / "job.yaml").exists():
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("moe_dist.report.build.build_report", lambda path: path)
                patch.setattr(predictions, "EVALUATION_BATCH", BATCH)
                run_module.run_job(job or JOBS[method], run, "local", quiet())
        return run


def evaluated(run: Path, model: str) -> dict[str, np.ndarray]:
    """What the run's own evaluation predicted."""
    with np.load(evaluation_of(run / model) / "predictions.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def samples_of(job: Job) -> list[bytes]:
    """The encoded test images of a run of `job`, in the order of its evaluation."""

    data = built_data(job.data, job.seed, cache_folder())
    shards = ShardSet.open(
        f"{shards_place(job.data, cache_folder())}/test", job.data.remote, cache_folder() / "fetched"
    )
    return [shards.read(int(sample)) for sample in data.test_samples]
