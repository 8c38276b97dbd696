"""MixUp and CutMix in a job: used if the method supports images of two labels, else an error."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from run_folders import training_of
from small_jobs import dfcp, quiet, sparse, traditional

from moe_dist.data.batch import DatasetInfo
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.run.run import run_job
from moe_dist.train.requirements import require_trainable

INFO = DatasetInfo(10, tuple("0123456789"), 16, 300, (30,) * 10)


def method_of(job: Job) -> Method:
    assert job.method is not None
    return method_class(job.method.name)(job.method, INFO)


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}])
def test_mixed_labels_need_a_loss_for_them(mixing: dict[str, float]) -> None:
    job = sparse(augment=mixing)
    with pytest.raises(UserError, match=r"stage sparse: sparse_moe has no loss for images of two labels"):
        require_trainable(job, method_of(job), 30)


def test_steps_before_training_have_no_mixed_labels() -> None:
    with pytest.raises(UserError, match=r"alone.augment: mixup is for training stages \(joint.augment\)"):
        dfcp(method={"name": "dfcp", "alone": {"augment": {"mixup": 0.2}}})


def test_a_job_trains_on_mixed_images(tmp_path: Path) -> None:
    """The first loss of an untrained mixture is about log 10 whatever the labels; the last is below it."""
    content = traditional(epochs=6).model_dump(mode="json")
    content["method"]["augment"] = {"policy": "randaugment", "mixup": 0.4, "cutmix": 1.0}
    job = parse_job(content, "mixed.yaml")
    require_trainable(job, method_of(job), 30)
    run_job(job, tmp_path / "run", "local", quiet())
    lines = [
        json.loads(line)
        for line in (training_of(tmp_path / "run/traditional_moe") / "metrics.jsonl").read_text().splitlines()
    ]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert losses[0] == pytest.approx(math.log(10), abs=0.1)
    assert losses[-1] < losses[0]
