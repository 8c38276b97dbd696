"""methods/gmm_moe: both stages through the loop, kept maps, resumption, workers, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from run_folders import evaluation_of, log_of, training_of
from safetensors.numpy import load_file
from small_jobs import quiet

import moe_dist.train.loop as loop
from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.job import Job, load_job
from moe_dist.methods.gmm_moe.config import GmmMoeConfig
from moe_dist.methods.gmm_moe.kept import CHUNK
from moe_dist.methods.gmm_moe.method import FROZEN, WHOLE, GmmMoe
from moe_dist.methods.phases import Progress, Stage
from moe_dist.run.preview import seconds_a_step
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint
from tests.methods.gmm_moe.small_gmm_moe import METHOD, STAGE, TAPS, job

JOBS = Path(__file__).parents[3] / "jobs" / "gmm_moe"
INFO = DatasetInfo(10, tuple("abcdefghij"), 32, 108)


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


class Killed(BaseException):
    """Stands for the end of the process."""


def run(asked: Job, folder: Path) -> Path:
    run_job(asked, folder, "local", quiet())
    return folder / asked.method.name


def tensors(model: Path) -> dict[str, np.ndarray]:
    newest = newest_checkpoint(training_of(model) / "checkpoints")
    assert newest is not None
    return {
        f"{path.name}/{key}": each for path in newest.glob("*.safetensors") for key, each in load_file(path).items()
    }


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name


def told(model: Path, name: str, kind: str = "step") -> list[float]:
    return [line[name] for line in log_of(model) if line["kind"] == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's folder of an unbroken run of both stages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        return run(job(), tmp_path_factory.mktemp("whole") / "run")


def test_both_stages_learn_and_tell_what_the_gates_do(whole: Path) -> None:
    losses = [line["loss"] for line in log_of(whole) if line["kind"] == "step" and line["stage"] == FROZEN]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    first = next(line for line in log_of(whole) if line["kind"] == "step")
    assert first["blocks.2/separation"] == pytest.approx(4.0, abs=1e-5)
    assert first["blocks.4/blend"] == pytest.approx(1 / (1 + math.e), abs=1e-6)
    assert 0 < first["blocks.2/entropy"] <= 1 and first["blocks.4/weight"] == 1
    assert sum(first[f"blocks.4/gamma/{expert}"] for expert in range(3)) == pytest.approx(1, abs=1e-5)
    assert {line["stage"] for line in log_of(whole)} == {FROZEN, WHOLE}


def test_what_is_evaluated_has_a_gate_for_every_tap_and_maps_of_responsibility(whole: Path) -> None:
    with np.load(evaluation_of(whole) / "predictions.npz") as arrays:
        for tap in ("blocks.2", "blocks.4"):
            assert arrays[f"gate.{tap}"].shape == (40, 3)
            np.testing.assert_allclose(arrays[f"gate.{tap}"].sum(1), 1, atol=1e-5)
    with np.load(evaluation_of(whole) / "own.npz") as arrays:
        assert arrays["responsibility_0"].shape[1:] == (4, 4) and arrays["responsibility_0"].max() <= 1
        assert arrays["expert_1"].shape[1:] == (1, 1)
    with np.load(evaluation_of(whole) / "grad_cam.npz") as arrays:
        assert arrays["cams"].shape[1:] == (1, 4, 4)


def test_killed_after_every_step_it_ends_bit_identical(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each start does two steps more than the last one left, and dies before the next."""
    real, done = loop.train_step, [0]

    def two_steps(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if done[0] == 2:
            raise Killed
        done[0] += 1
        return real(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", two_steps)
    asked = job(checkpoint={"every_steps": 1})
    for _ in range(30):
        done[0] = 0
        try:
            model = run(asked, tmp_path)
            break
        except Killed:
            continue
    assert_same(model, whole)
    assert told(model, "loss") == told(whole, "loss")


@pytest.mark.parametrize("limits", [{"keep_maps_gib": 0}, {"keep_maps_gib": 5e-4}])
def test_kept_maps_give_the_numbers_of_maps_computed_each_time(whole: Path, limits: dict, tmp_path: Path) -> None:
    model = run(job(limits), tmp_path)
    assert told(model, "loss") == told(whole, "loss")
    assert_same(model, whole)


def test_the_backbone_stands_still_in_stage_one_and_moves_in_stage_two(whole: Path, tmp_path: Path) -> None:
    method = GmmMoe(GmmMoeConfig.model_validate(METHOD), INFO)
    network = method.build(IN_ONE_PROCESS, {}, 0)
    frozen, both = tensors(run(job({"whole": None}), tmp_path)), tensors(whole)
    names = network.backbone.state_dict()
    for name, each in names.items():
        assert np.array_equal(frozen[f"dense.safetensors/backbone.{name}"], each.numpy()), name
        assert not np.array_equal(both[f"dense.safetensors/backbone.{name}"], each.numpy()), name
    assert len(names) > 50
    method.set_training(network, FROZEN)
    assert not network.backbone.training and network.modules_at["0"].training
    method.set_training(network, WHOLE)
    assert network.backbone.training


def test_the_backbone_is_computed_once_for_every_image_by_all_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from moe_dist.models.tapped import Tapped

    monkeypatch.setenv("MOE_DIST_CACHE", str(tmp_path / "cache"))
    seen: list[None] = []
    real = Tapped.forward

    def forward(self: Tapped, images: torch.Tensor) -> list[torch.Tensor]:
        seen.extend([None] * (len(images) == CHUNK))  # the test images come otherwise
        return real(self, images)

    monkeypatch.setattr(Tapped, "forward", forward)
    stage = STAGE | {"epochs": 6}
    counts = {}
    for name, changes in {
        "first": {"frozen": stage},
        "second": {"frozen": stage | {"learning_rate": 0.02}},
        "anew": {"frozen": stage, "keep_maps_gib": 0},
    }.items():
        seen.clear()
        run(job({"whole": None} | changes), tmp_path / name)
        counts[name] = len(seen)
    initialising, learning_shapes = 2, 2
    assert counts["second"] == initialising + learning_shapes < counts["first"] < counts["anew"] / 2


def test_an_estimate_computes_the_frozen_backbone_once_as_the_training_does(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_dist.models.tapped import Tapped

    seen: list[int] = []
    real = Tapped.forward
    monkeypatch.setattr(Tapped, "forward", lambda self, images: (seen.append(len(images)), real(self, images))[1])
    method = GmmMoe(GmmMoeConfig.model_validate(METHOD), INFO)
    network = method.build(IN_ONE_PROCESS, {}, 0)
    frozen, whole = method.stages()
    assert seconds_a_step(method, network, frozen) > 0
    assert len(seen) == 2, "the maps' shapes, and the maps"
    assert seconds_a_step(method, network, whole) > 0
    assert len(seen) > 2 + 1


def test_two_workers_with_experts_divided_over_them(tmp_path: Path) -> None:
    """Batch statistics are of other parts of a batch than in one process, which the fingerprint counts."""
    asked = job(workers=2, parallel={"expert": 2})
    model = run(asked, tmp_path)
    names = tensors(model)
    for expert in range(3):
        assert (
            f"modules_at.0.experts_{expert:04d}.safetensors/modules_at.0.experts.members.{expert}.norm.weight" in names
        )
    assert all(math.isfinite(value) for value in told(model, "loss"))
    settings = (training_of(model) / "settings.json").read_text()
    assert '"expert_ranks": 2' in settings and '"batch_parts": 2' in settings


@pytest.mark.parametrize(
    "modules", ["softmax", "one_expert", "one_wide_expert", "squeeze_excitation", "none", "linear"]
)
def test_what_it_is_compared_with_is_one_setting(modules: str, tmp_path: Path) -> None:
    model = run(job({"modules": modules, "frozen": STAGE | {"epochs": 1}, "whole": None}), tmp_path)
    assert math.isfinite(told(model, "loss")[-1])


def test_top_k_is_reported_beside_all(tmp_path: Path) -> None:
    model = run(job({"top_k": [1, 2], "whole": None}), tmp_path)
    with np.load(evaluation_of(model) / "predictions.npz") as arrays:
        assert arrays["log_probs_top1"].shape == arrays["log_probs"].shape
        assert not np.array_equal(arrays["log_probs_top1"], arrays["log_probs"])


def test_the_residual_weight_grows_in_stage_two() -> None:
    method = GmmMoe(GmmMoeConfig.model_validate(METHOD | {"anneal_epochs": 10}), INFO)
    weights = [method.residual(Progress(WHOLE, epoch, 150, 1)) for epoch in (0, 5, 10, 100)]
    assert weights == pytest.approx([0.5, 0.65, 0.8, 0.8])
    assert method.residual(Progress(FROZEN, 20, 150, 1)) == 0.5


def test_defaults_are_the_paper_s() -> None:
    """Table 1 and section 2.5."""
    config = GmmMoeConfig()
    assert [(t.experts, t.dim, t.kernel, t.temperature, t.balance_weight, t.nll_weight) for t in config.taps] == [
        (10, 256, 5, 1.3, 0.02, 0.05),
        (10, 512, 3, 1.6, 0.03, 0.10),
        (10, 512, 1, 1.4, 0.03, 0.10),
    ]
    method = GmmMoe(config, DatasetInfo(102, tuple(map(str, range(102))), 224, 45095))
    first, second = method.phases()
    assert isinstance(first, Stage) and isinstance(second, Stage)
    for stage, rate in ((first, 1e-4), (second, 5e-5)):
        optimiser = stage.optimisers[""]
        assert optimiser is not None and (optimiser.kind, optimiser.learning_rate) == ("adam", rate)
        assert (stage.epochs, stage.batch_size, stage.clip_norm, stage.patience_epochs) == (150, 32, 1.0, 20)
        assert (stage.schedule.kind, stage.schedule.factor, stage.schedule.patience_epochs) == ("plateau", 0.2, 10)
    assert first.optimisers["backbone."] is None and "backbone." not in second.optimisers
    assert method._shapes == [(512, 28), (1024, 14), (1024, 7)]


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_job_s_taps_are_there_and_have_room_for_their_modules(path: Path) -> None:
    job = load_job(path)
    for config in job.models.values():
        if isinstance(config, GmmMoeConfig):
            GmmMoe(config, DatasetInfo(2, ("a", "b"), job.data.image_size, 10))


def test_without_a_residual_the_experts_map_takes_the_place_of_the_tap_s() -> None:
    assert GmmMoeConfig.model_validate(METHOD | {"residual_start": 1, "residual_end": 1}).residual_end == 1
    with pytest.raises(ValidationError, match="residual_end"):
        GmmMoeConfig.model_validate(METHOD | {"residual_end": 1.1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "timm/test_eficientnet"}, "no network of timm's; try timm/test_efficientnet"),
        ({"taps": [TAPS[0] | {"at": "blocks.9"}]}, "has no such module; there are"),
        ({"taps": [TAPS[0] | {"dim": 33}]}, "dim = 33 at blocks.2, whose map has 32 channels"),
        ({"taps": [TAPS[0], TAPS[0]]}, "named twice"),
        ({"frozen": None, "whole": None}, "neither stage"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        GmmMoe(GmmMoeConfig.model_validate(METHOD | changes), INFO)


@pytest.mark.parametrize("tap", [{"experts": 0}, {"kernel": 4}, {"dim": 0}, {"route": "top3"}])
def test_sizes_out_of_bounds_are_refused_by_field(tap: dict) -> None:
    with pytest.raises(ValidationError, match=f"taps.0.{next(iter(tap))}"):
        GmmMoeConfig.model_validate(METHOD | {"taps": [TAPS[0] | tap]})


def test_images_too_small_for_the_backbone_are_refused() -> None:
    small = DatasetInfo(10, INFO.class_names, 16, 108)
    with pytest.raises(UserError, match="images of 16 pixels are too small"):
        GmmMoe(GmmMoeConfig(weights=None), small)
