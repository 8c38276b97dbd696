"""Trainings that begin from a finished run: what they take over, what begins anew, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import checkpoints_of, training_of
from safetensors.torch import load_file, save_file
from small_jobs import NARROW, dfcp, quiet, traditional

import moe_dist.run.run as run_module
from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.checkpoint import weight_files
from moe_dist.errors import UserError
from moe_dist.files import file_sha256, read_json
from moe_dist.job import Job, parse_job
from moe_dist.methods.base import Method
from moe_dist.methods.registry import method_class
from moe_dist.record.run_place import RunPlace
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.origin import Origin, origin_of, tensors_of_classes

STANDING_STILL = NARROW | {"learning_rate": 1e-12}
"""Experts whose training changes nothing that float32 can hold, so that what they began with is seen at its end."""
GATE_STANDING_STILL = {
    "filters": [4, 8],
    "hidden": [16],
    "dropout": 0.0,
    "optimiser": {"kind": "adam", "learning_rate": 1e-12},
}
NAMES = ("a", "b", "c")


def method_of(job: Job, names: tuple[str, ...] = NAMES) -> Method:
    (config,) = job.models.values()
    info = DatasetInfo(len(names), names, 16, 30, (10,) * len(names))
    return method_class(config.name)(config, info)


def built(method: Method, seed: int) -> torch.nn.Module:
    from moe_dist.engine.choose import IN_ONE_PROCESS

    return method.build(IN_ONE_PROCESS, {}, seed)


def origin_at(folder: Path, method: Method, seed: int) -> Origin:
    """An origin of which all weights are in one file."""
    save_file(built(method, seed).state_dict(), folder / "weights.safetensors")
    files = {"weights.safetensors": file_sha256(folder / "weights.safetensors")}
    return Origin("there", method.config.name, tuple(method.info.class_names), folder, files, RunPlace(folder))


def run(job: Job, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        run_module.run_job(job, folder, "local", quiet())
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A traditional mixture, trained for an epoch."""
    return run(traditional(epochs=1), tmp_path_factory.mktemp("finished") / "run")


def weights_of(run: Path, model: str = "traditional_moe") -> dict[str, torch.Tensor]:
    checkpoint = newest_checkpoint(checkpoints_of(run / model))
    assert checkpoint is not None
    return {name: value for file in weight_files(checkpoint) for name, value in load_file(checkpoint / file).items()}


def test_all_is_taken_over_where_the_classes_are_the_same(tmp_path: Path) -> None:
    method = method_of(traditional())
    network, there = built(method, 1), built(method, 2)
    origin = origin_at(tmp_path, method, 2)
    origin.take_over(network, method)
    assert all(torch.equal(value, there.state_dict()[name]) for name, value in network.state_dict().items())
    assert "(100.0% of the numbers)" in origin.in_words(method) and "anew" not in origin.in_words(method)


@pytest.mark.parametrize("names", [("a", "b", "x"), ("a", "b", "c", "d"), ("c", "a", "b")])
def test_heads_begin_anew_where_the_classes_are_others(names: tuple[str, ...], tmp_path: Path) -> None:
    """Also where there are as many, or the same in another order; experts stay."""
    origin, method = origin_at(tmp_path, method_of(traditional()), 2), method_of(traditional(), names)
    network, before = built(method, 1), built(method, 1).state_dict()
    origin.take_over(network, method)
    there = load_file(tmp_path / "weights.safetensors")
    heads = tensors_of_classes(method)
    gate = {name for name in heads if name.startswith("gate.")}  # by default there are as many experts as classes
    assert len(gate) == 2 and all(".classifier.5." in name for name in heads - gate) and len(heads - gate) > 2
    anew = {name for name in before if name in heads or name not in there}  # of a fourth expert, too
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else there[name])
    said = origin.in_words(method)
    assert f"{len(before) - len(anew)} of {len(before)} tensors" in said
    assert "begin anew; the classes are others" in said


def test_an_expert_of_a_class_is_that_of_the_class_of_the_same_name(tmp_path: Path) -> None:
    origin, method = origin_at(tmp_path, method_of(dfcp()), 2), method_of(dfcp(), ("new", "c", "a"))
    network, before = built(method, 1), built(method, 1).state_dict()
    origin.take_over(network, method)
    there, now = load_file(tmp_path / "weights.safetensors"), network.state_dict()
    for name in (name for name in now if name.startswith("experts.members.0.")):
        assert torch.equal(now[name], before[name])
        assert torch.equal(now[name.replace(".0.", ".1.", 1)], there[name.replace(".0.", ".2.", 1)])
        assert torch.equal(now[name.replace(".0.", ".2.", 1)], there[name])
    assert "new: new; gone: b" in origin.in_words(method)


def test_what_changed_meanwhile_is_not_taken_over(tmp_path: Path) -> None:
    method = method_of(traditional())
    origin = origin_at(tmp_path, method, 2)
    origin_at(tmp_path, method, 3)
    with pytest.raises(UserError, match=r"weights.safetensors is not there, or not what it was"):
        origin.take_over(built(method, 1), method)


def test_a_training_begins_with_the_weights_of_another(finished: Path, tmp_path: Path) -> None:
    """Its fingerprint says so, and one that begins anew is another one."""
    still: dict[str, Any] = {"epochs": 1, "experts": STANDING_STILL, "gate": GATE_STANDING_STILL}
    going_on = run(traditional(init_from=str(finished), **still), tmp_path / "run")
    before, after = weights_of(finished), weights_of(going_on)
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)
    settings = read_json(training_of(going_on / "traditional_moe") / "settings.json")
    assert settings["init_from"]["classes"] == list("0123456789") and settings["init_from"]["weights"]
    anew = run(traditional(**still), going_on)
    assert training_of(anew / "traditional_moe").name != training_of(finished / "traditional_moe").name
    assert len(list((anew / "traditional_moe" / "trainings").iterdir())) == 2
    assert not torch.allclose(next(iter(weights_of(anew).values())), next(iter(before.values())))


def test_a_run_at_a_url_is_fetched_by_the_node_that_begins_from_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is taken over is the same, and so is the fingerprint."""
    monkeypatch.setenv("MOE_DIST_NODE_CACHE", str(tmp_path / "driver"))
    here, there = (
        origin_of(traditional(init_from=place), "traditional_moe") for place in (str(finished), f"file://{finished}")
    )
    assert here is not None and there is not None and here.settings() == there.settings()
    assert there.where.startswith(f"file://{finished} (traditional_moe, checkpoint_")
    worker = Origin.unpack(json.loads(json.dumps(there.pack())), tmp_path / "worker")
    assert not worker.folder.exists()
    network = built(method_of(traditional(), tuple("0123456789")), 1)
    worker.take_over(network, method_of(traditional(), tuple("0123456789")))
    trained = weights_of(finished)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in network.state_dict().items())


def test_a_secret_in_a_url_is_refused() -> None:
    with pytest.raises(UserError, match="init_from https://host/x: leave out user, password and query"):
        origin_of(traditional(init_from="https://me:hidden@host/x"), "traditional_moe")


@pytest.mark.slow
def test_experts_on_two_ranks_begin_with_the_weights_of_another_run(finished: Path, tmp_path: Path) -> None:
    still: dict[str, Any] = {"epochs": 1, "experts": STANDING_STILL, "gate": GATE_STANDING_STILL}
    job = traditional(init_from=str(finished), workers=2, parallel={"expert": 2}, **still)
    before, after = weights_of(finished), weights_of(run(job, tmp_path / "run"))
    assert all(torch.allclose(after[name], before[name], atol=1e-9) for name in before)


@pytest.mark.slow
def test_gates_that_a_stage_initialises_from_images_are_taken_over_after_that(tmp_path: Path) -> None:
    """Of GMM-MoE's frozen stage, which trains nothing here."""
    tap = {"experts": 3, "dim": 8, "kernel": 1, "at": "blocks.2"}
    method: dict[str, Any] = {"name": "gmm_moe", "backbone": "timm/test_efficientnet", "weights": None, "taps": [tap]}
    method |= {"width": 8, "whole": None, "frozen": {"epochs": 1, "batch_size": 40}}
    data = {"dataset": "digits", "image_size": 32, "max_train_images": 120, "max_test_images": 40}
    content: dict[str, Any] = {"name": "small", "kind": "train", "data": data, "method": method}
    before = run(parse_job(content, "first.yaml"), tmp_path / "first")
    method["frozen"] |= {"learning_rate": 1e-12}
    after = run(parse_job(content | {"init_from": str(before), "seed": 1}, "second.yaml"), tmp_path / "second")
    first, second = weights_of(before, "gmm_moe"), weights_of(after, "gmm_moe")
    gates = [name for name in first if ".gate." in name]
    assert gates and all(torch.allclose(second[name], first[name], atol=1e-6) for name in gates)


def test_what_cannot_be_begun_from_is_refused(finished: Path, tmp_path: Path) -> None:
    def with_origin(folder: Path, **method: Any) -> Job:
        content = traditional().model_dump(mode="json") | {"init_from": str(folder), "name": "x"}
        return parse_job(content | ({"method": method} if method else {}), "x.yaml")

    with pytest.raises(UserError, match="neither a run directory"):
        origin_of(with_origin(tmp_path), "traditional_moe")
    other = with_origin(finished, name="dense", backbone="resnet18", weights=None)
    with pytest.raises(UserError, match=r"is of the method traditional_moe, and dense of dense"):
        origin_of(other, "dense")
    with pytest.raises(UserError, match="finds its clusters anew"):
        origin_of(with_origin(finished, name="idec"), "idec")
    with pytest.raises(UserError, match="must be a path of this machine"):
        with_origin("s3:/bucket/run")  # type: ignore[arg-type]
    job = with_origin(finished)
    origin = origin_of(job, "traditional_moe")
    assert origin is not None and Origin.unpack(origin.pack(), tmp_path) == origin
    wide = traditional(init_from=str(finished), experts=NARROW | {"conv1": 3})
    assert "begin anew" in origin.in_words(method_of(wide, tuple("0123456789")))
