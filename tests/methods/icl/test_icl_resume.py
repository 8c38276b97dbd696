"""A whole ICL training on digits: killed at a step, it ends bit-identical, memory and gradient shares included."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from run_folders import checkpoints_of, evaluation_of, log_of
from safetensors.numpy import load_file

import moe_dist.train.loop as loop
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.run.run import run_job
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import newest_checkpoint

AUGMENT = {"pad_crop": 2, "cutout": 0.25}


def job(**changes: Any) -> Job:
    """Two experts of width 2 on 16 pixels: 2 epochs of 5 steps with everything on, then 1 of 5."""
    stage = {"batch_size": 48, "learning_rate": 0.05, "warmup_epochs": 0, "augment": AUGMENT}
    method = {"name": "icl", "network": {"width": 2}, "experts": 2, "t_ad": 9, "t_cl": 0}
    method |= {"features": stage | {"epochs": 2}, "classifiers": stage | {"epochs": 1}}
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 240, "max_test_images": 60, "val_fraction": 0}
    content = {"name": "small-icl", "kind": "train", "data": data, "method": method}
    return parse_job(content | changes, "small-icl.yaml")


def run(job: Job, folder: Path) -> None:
    run_job(job, folder, "local", Show(Console(quiet=True)))


def last_tensors(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of the newest checkpoint, by file and name."""
    newest = newest_checkpoint(checkpoints_of(folder / "icl"))
    assert newest is not None
    return {
        f"{path.name}/{name}": tensor
        for path in newest.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }


def lines(folder: Path) -> list[dict[str, Any]]:
    """The log without times and rates."""
    log = log_of(folder / "icl")
    return [{key: value for key, value in line.items() if key not in ("time", "images_per_second")} for line in log]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(job(), folder)
    return folder


def test_the_log_names_terms_and_gradient_shares(whole: Path) -> None:
    first, second, third = [line for line in lines(whole) if line["kind"] == "epoch"]
    assert {"loss/parallel", "loss/distill", "loss/diversity", "loss/contrast"} <= first.keys()
    shares = [first[f"gradient_share/expert_{expert}"] for expert in range(2)]
    assert sum(shares) == pytest.approx(1) and min(shares) > 0 and "gradient_share/expert_1" in second
    assert "loss/logit_adjusted" in third and "gradient_share/expert_0" not in third, "only classifiers are trained"


def test_the_memory_was_filled(whole: Path) -> None:
    tensors = last_tensors(whole)
    assert tensors["dense.safetensors/memory.prototypes"].any(2).all(), "every class has a prototype"
    assert tensors["dense.safetensors/memory.confusion"].any() and tensors["dense.safetensors/fresh"] == 1


def test_experts_choices_are_kept(whole: Path) -> None:
    with np.load(evaluation_of(whole / "icl") / "predictions.npz") as arrays:
        images, classes = arrays["log_probs"].shape
        assert arrays["experts_argmax"].shape == (images, 2) and arrays["experts_argmax"].dtype == np.int16
        log_probs = arrays["experts_log_probs"]
        assert log_probs.shape == (images, 2, classes) and log_probs.dtype == np.float16
        np.testing.assert_allclose(np.exp(log_probs.astype(np.float64)).sum(2), 1, atol=0.01)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("step", [4, *(pytest.param(step, marks=pytest.mark.chaos) for step in (8, 12))])
def test_a_run_killed_at_a_step_ends_bit_identical(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """In the first epoch, in the second, and in stage two."""
    real_step = loop.train_step

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.step == step:
            raise Killed
        return real_step(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", step_or_die)
    with pytest.raises(Killed):
        run(job(checkpoint={"every_steps": 1}), tmp_path / "run")
    monkeypatch.setattr(loop, "train_step", real_step)
    run(job(checkpoint={"every_steps": 1}), tmp_path / "run")
    ours, unbroken = last_tensors(tmp_path / "run"), last_tensors(whole)
    assert ours.keys() == unbroken.keys()
    for name, tensor in unbroken.items():
        assert np.array_equal(ours[name], tensor, equal_nan=name.startswith("random")), name
    assert lines(tmp_path / "run") == lines(whole)


def test_micro_batches_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"parallel\.micro_batches = 2: a loss of icl is not a sum"):
        run(job(parallel={"micro_batches": 2}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_looks_at_the_test_split_change_nothing_and_their_best_is_marked(whole: Path, tmp_path: Path) -> None:
    """Every second of the three epochs, and a stage's last: 2 of features and the one of classifiers."""
    tested = tmp_path / "tested"
    run(job(checkpoint={"test_every_epochs": 2}), tested)
    one, other = last_tensors(whole), last_tensors(tested)
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name], equal_nan=name.startswith("random")) for name in one)
    curve = [line.pop("test/top1", None) for line in lines(tested) if line["kind"] == "epoch"]
    metrics = json.loads((tested / "metrics.json").read_text())
    assert curve[0] is None and curve[2] == metrics["icl/top1"]
    assert metrics["icl/top1_best_on_test"] == max(curve[1:]) and metrics["icl/best_on_test_epoch"] in (2, 3)
    page = (tested / "report.html").read_text()
    assert "best epoch CHOSEN ON TEST" in page and "It is chosen by the images it is measured on" in page
    assert "icl/top1_best_on_test" not in json.loads((whole / "metrics.json").read_text())
