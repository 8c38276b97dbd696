"""ICL's losses on a backbone with a GMM-gated module: the job's settings on digits, the module's own gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from run_folders import log_of
from small_jobs import quiet

from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.job import parse_job
from moe_dist.models.branches import BranchNetwork, NetworkConfig, build_branches
from moe_dist.run.run import run_job

ROOT = Path(__file__).parents[3]
JOB = ROOT / "jobs" / "gmm_moe" / "icl_cifar100_lt.yaml"


def test_the_job_runs_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But its data and the number of its epochs; both stages, in the first the module learns."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)
    content = yaml.safe_load(JOB.read_text())
    content["data"] = {"dataset": "digits", "image_size": 16, "max_train_images": 160, "max_test_images": 40}
    content["data"]["val_fraction"] = 0
    content["method"]["network"] |= {"width": 8, "module": {"experts": 3, "dim": 8, "temperature": 1.4}}
    moves = {"batch_size": 32, "warmup_epochs": 0, "augment": {"flip": True}}
    content["method"] |= {"features": moves | {"epochs": 3}, "classifiers": moves | {"epochs": 1}, "t_ad": 2, "t_cl": 1}
    run_job(parse_job(content, "icl.yaml"), tmp_path / "run", "local", quiet())
    lines = [line for line in log_of(tmp_path / "run" / "icl") if line["kind"] == "step"]
    first = [line for line in lines if line["stage"] == "features"]
    assert first[0]["module/separation"] == pytest.approx(4.0, abs=1e-3)
    assert first[-1]["module/separation"] != first[0]["module/separation"]
    assert {"loss/auxiliary", "loss/parallel", "loss/diversity"} <= first[0].keys() and "loss/contrast" in first[-1]
    assert "loss/auxiliary" not in lines[-1] and lines[-1]["stage"] == "classifiers"


def build(module: dict | None) -> BranchNetwork:
    return build_branches(NetworkConfig.model_validate({"width": 4, "module": module}), 5, 16, 2, IN_ONE_PROCESS, 0)


def test_the_module_changes_what_the_branches_see_and_has_their_gradient() -> None:
    images = torch.randn(4, 3, 16, 16)
    plain, changed = build(None).eval(), build({"experts": 2, "dim": 4}).eval()
    assert plain.with_module(images)[1] is None
    outputs, mixed = changed.with_module(images)
    assert mixed is not None and mixed.gamma.shape[:2] == (4, 2)
    assert torch.equal(outputs.logits, changed(images).logits)
    assert not torch.equal(outputs.logits, plain(images).logits)
    outputs.logits.sum().backward()
    assert changed.module is not None and changed.module.projection.weight.grad.abs().sum() > 0
    shared = {name for name in plain.state_dict() if not name.startswith("module.")}
    assert all(torch.equal(plain.state_dict()[name], changed.state_dict()[name]) for name in shared)
    changed.train_classifiers_only()
    changed.train()
    assert not changed.module.training


def test_a_module_wider_than_the_map_is_refused() -> None:
    with pytest.raises(ValidationError, match="the last shared map has 8 channels"):
        NetworkConfig.model_validate({"width": 4, "module": {"dim": 9}})
