"""EDCWRN, IDEC and DEC through the protocol: run, killed and gone on with, divided over workers, stopped, reported."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from run_folders import checkpoints_of, evaluation_of, log_of, training_of
from safetensors.numpy import load_file
from small_jobs import quiet
from torch import Tensor, nn

import moe_dist.methods.edcwrn.update as update_module
import moe_dist.train.loop as loop
from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.methods.edcwrn.config import EdcwrnConfig
from moe_dist.methods.edcwrn.method import Edcwrn
from moe_dist.methods.edcwrn.network import AutoEncoder, ClusteringNetwork, TrialNetwork
from moe_dist.places import ModelFolder
from moe_dist.report.build import build_report
from moe_dist.run.preview import preview
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint

SMALL = {
    "network": {"hidden": [16, 24], "code": 4},
    "pretrain": {"steps": 8},
    "batch_size": 24,
    "steps": 9,
    "refresh_every": 4,
    "kmeans_restarts": 1,
    "optimiser": {"kind": "sgd", "learning_rate": 0.05},
    "augment": {"shift": 0.1, "rotate": 10, "zoom": 0.1},
}
BATCH = {"neighbours": {"scope": "batch"}, "weighting": {"scope": "batch"}}
DATA = {"dataset": "digits", "image_size": 8, "val_fraction": 0, "max_train_images": 120, "max_test_images": 40}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


def small(name: str = "edcwrn", method: dict[str, Any] | None = None, **changes: Any) -> Job:
    content = {"name": "small", "kind": "train", "data": DATA, "method": {"name": name} | SMALL | (method or {})}
    return parse_job(content | changes, "small.yaml")


def run(job: Job, folder: Path) -> Path:
    run_job(job, folder, "local", quiet())
    assert job.method is not None
    return folder / job.method.name


def tensors(model: Path) -> dict[str, np.ndarray]:
    """Every tensor and array of the newest checkpoints of both trainings."""
    found: dict[str, np.ndarray] = {}
    for name, training in {"": training_of(model), **ModelFolder(model).current().earlier}.items():
        newest = newest_checkpoint(training / "checkpoints")
        assert newest is not None
        for path in newest.glob("*.safetensors"):
            found |= {f"{name}/{path.name}/{key}": tensor for key, tensor in load_file(path).items()}
    return found


def labels(model: Path) -> np.ndarray:
    (found,) = [tensor for name, tensor in tensors(model).items() if name.endswith("/label")]
    return found


def refreshes(model: Path) -> list[int]:
    return [line["step"] for line in log_of(model) if line["kind"] == "refresh"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        return run(small(), tmp_path_factory.mktemp("unbroken") / "run")


def test_the_target_is_refreshed_every_t_steps_and_after_the_last(unbroken: Path) -> None:
    assert refreshes(unbroken) == [0, 4, 8, 9]
    last = [line for line in log_of(unbroken) if line["kind"] == "refresh"][-1]
    assert 0 < last["accuracy"] <= 1 and 0 <= last["nmi"] <= 1 and last["inter_cluster_variance"] > 0


def test_the_clustering_begins_with_the_pretrained_encoder_twice(unbroken: Path) -> None:
    names = {name.rpartition("/")[2] for name in tensors(unbroken)}
    assert {"autoencoder.encoder.0.weight", "neighbour_encoder.0.weight", "centres", "weights"} <= names


def test_codes_are_compared_with_new_samples_by_the_training_ones(unbroken: Path) -> None:
    """A prediction does not depend on what else is in its batch."""
    with np.load(evaluation_of(unbroken) / "predictions.npz") as arrays:
        assert arrays["log_probs"].shape == (40, 10)
        assert np.allclose(np.exp(arrays["log_probs"]).sum(1), 1, atol=1e-5)


def run_killed_at(stage: str, step: int, job: Job, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the job until a step of a stage, which never begins."""
    real = loop.train_step

    def step_or_die(method: Any, session: Any, batch: Any, progress: Any) -> Any:
        if progress.stage == stage and progress.step == step:
            raise Killed
        return real(method, session, batch, progress)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "train_step", step_or_die)
        run(job, folder)


@pytest.mark.parametrize(("stage", "step"), [("pretrain", 5), ("cluster", 1), ("cluster", 6)])
def test_killed_in_either_stage_it_ends_bit_identical(
    stage: str, step: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of the pretraining; between the first refresh and its next step; between two refreshes."""
    job = small(checkpoint={"every_steps": 2})
    run_killed_at(stage, step, job, tmp_path, monkeypatch)
    assert_same(run(job, tmp_path), unbroken)


SLOWLY = {"kind": "sgd", "learning_rate": 0.002}
THREE = {"starts": {"count": 3, "steps": 5}, "kmeans_restarts": 4, "spread": 3.0, "optimiser": SLOWLY}


def updates_by_stage(model: Path) -> dict[str, list[dict[str, Any]]]:
    """The log's lines of the target's updates, of the clustering and of every trial before it."""
    folders = [training_of(model), *ModelFolder(model).current().earlier.values()]
    lines = [json.loads(line) for folder in folders for line in (folder / "metrics.jsonl").read_text().splitlines()]
    found: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["kind"] == "refresh":
            found.setdefault(line["stage"], []).append(line)
    return found


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("moe_dist.report.build.build_report", lambda path: path)
        return run(small("idec", THREE), tmp_path_factory.mktemp("tried") / "run")


def test_the_start_with_the_least_variance_within_clusters_is_clustered_in_full(tried: Path) -> None:
    found = updates_by_stage(tried)
    clustering = found.pop("cluster")
    assert found.keys() == {f"cluster_start_{number}" for number in range(3)}
    assert all([line["step"] for line in lines] == [0, 4, 5] for lines in found.values())
    assert [line["step"] for line in clustering] == [0, 4, 8, 9]
    begun = [lines[0]["within"] for lines in found.values()]
    assert len(set(begun)) == 3
    best = min(found.values(), key=lambda lines: float(lines[-1]["within"]))
    assert clustering[0]["within"] == best[0]["within"]
    assert {name for name in tensors(tried) if name.endswith("/optima")} and not any(
        name.endswith("/optima") for name in load_file(newest_weights(tried))
    )


def newest_weights(model: Path) -> Path:
    newest = newest_checkpoint(checkpoints_of(model))
    assert newest is not None
    return newest / "dense.safetensors"


def test_killed_in_a_trial_it_ends_bit_identical(tried: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = small("idec", THREE, checkpoint={"every_steps": 2})
    run_killed_at("cluster_start_1", 4, job, tmp_path, monkeypatch)
    assert_same(run(job, tmp_path), tried)


def test_all_methods_begin_at_the_start_that_idec_chose(tried: Path, tmp_path: Path) -> None:
    """Their trials are the same, so that a grid makes them once."""
    ours, theirs = (updates_by_stage(model) for model in (run(small(method=THREE), tmp_path), tried))
    for found in (ours, theirs):
        for line in [line for lines in found.values() for line in lines]:
            line.pop("time")
    assert (
        all(ours[name] == theirs[name] for name in ours if name != "cluster") and ours["cluster"] != theirs["cluster"]
    )


def test_another_number_of_starts_is_tried_anew(tmp_path: Path) -> None:
    run(small("idec", THREE), tmp_path)
    model = run(small("idec", THREE | {"starts": {"count": 2, "steps": 5}}), tmp_path)
    assert updates_by_stage(model).keys() == {"cluster", "cluster_start_0", "cluster_start_1"}


def test_a_code_of_two_parts_begins_at_twice_the_optimum() -> None:
    config = EdcwrnConfig.model_validate(SMALL | {"starts": {"count": 2}})
    method = Edcwrn(config, DatasetInfo(3, ("a", "b", "c"), 8, 20))
    trained: dict[str, nn.Module] = {"pretrain": AutoEncoder(64, [16, 24], 4, colour=False)}
    for number, within in enumerate((0.3, 0.2)):
        trial = TrialNetwork(AutoEncoder(64, [16, 24], 4, colour=False), 3, 20, starts=2)
        trial.optima.copy_(torch.arange(24.0).reshape(2, 3, 4))
        trial.within.fill_(within)
        trained[f"cluster_start_{number}"] = trial
    network = method.stages()[-1].build(IN_ONE_PROCESS, {}, trained.__getitem__, 0)  # type: ignore[misc]
    assert isinstance(network, ClusteringNetwork)
    assert torch.equal(network.centres.detach(), 2 * torch.arange(12.0, 24.0).reshape(3, 4))


def test_a_start_that_k_means_does_not_have_is_not_tried(tmp_path: Path) -> None:
    """One run of k-means has one optimum, however many are asked for."""
    found = updates_by_stage(run(small("idec", THREE | {"kmeans_restarts": 1}), tmp_path))
    assert [line["step"] for line in found["cluster_start_0"]] == [0, 4, 5]
    assert found.keys() == {"cluster_start_0", "cluster"}
    assert found["cluster"][0]["within"] == found["cluster_start_0"][0]["within"]


@pytest.mark.parametrize("number", [2, 4])
def test_killed_inside_a_refresh_it_ends_bit_identical(
    number: int, unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second, and the one after the last step, each before its result is anywhere."""
    real, job, seen = update_module.nearest_of_all, small(checkpoint={"every_steps": 2}), [0]

    def find_or_die(codes: np.ndarray, count: int) -> np.ndarray:
        seen[0] += 1
        if seen[0] == number:
            raise Killed
        return real(codes, count)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(update_module, "nearest_of_all", find_or_die)
        run(job, tmp_path)
    assert_same(run(job, tmp_path), unbroken)


def assert_same(left: Path, right: Path) -> None:
    ours, theirs = tensors(left), tensors(right)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert np.array_equal(ours[name], theirs[name], equal_nan=True), name


@pytest.mark.parametrize("name", ["edcwrn", pytest.param("dec", marks=pytest.mark.slow)])
def test_two_workers_give_the_labels_of_one(name: str, tmp_path: Path) -> None:
    """With two micro-batches the very same parts are added."""
    one = run(small(name, parallel={"micro_batches": 2}), tmp_path / "one")
    two = run(small(name, workers=2, parallel={"micro_batches": 2}), tmp_path / "two")
    assert np.array_equal(labels(one), labels(two))
    ours, theirs = tensors(one), tensors(two)
    assert all("random" in key or np.array_equal(ours[key], theirs[key]) for key in ours)


def test_two_workers_find_the_neighbours_and_weights_of_the_whole_batch(tmp_path: Path) -> None:
    one, two = (run(small(method=BATCH, workers=workers), tmp_path / str(workers)) for workers in (1, 2))
    assert np.array_equal(labels(one), labels(two))
    ours, theirs = tensors(one), tensors(two)
    for key in ours:
        if "random" not in key:
            np.testing.assert_allclose(ours[key], theirs[key], rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["idec", "dec"])
def test_idec_and_dec_have_one_encoder_and_no_weights(name: str, tmp_path: Path) -> None:
    model = run(small(name), tmp_path)
    found = tensors(model)
    assert not any("neighbour_encoder" in key for key in found)
    assert all((values == 0.25).all() for key, values in found.items() if key.endswith("/weights"))
    step = next(line for line in log_of(model) if line["kind"] == "step" and line["stage"] == "cluster")
    assert ("loss/reconstruction" in step) == (name == "idec")


def test_labels_that_stand_still_end_the_clustering(tmp_path: Path) -> None:
    """A rate of almost nothing leaves the labels as they are: the second look ends it."""
    still = {"optimiser": {"kind": "sgd", "learning_rate": 1e-12}, "tolerance": 0.01, "weighting": {"enabled": False}}
    model = run(small("idec", still), tmp_path)
    assert refreshes(model) == [0, 4]
    newest = newest_checkpoint(checkpoints_of(model))
    assert newest is not None
    assert json.loads((training_of(model) / "training.json").read_text())["over"] == "the labels stand still"


@pytest.mark.slow
def test_every_row_of_the_ablation_runs_on_one_pretraining(tmp_path: Path) -> None:
    """Table 3's eight rows, in one run directory: the pretrained codes are those of the first."""
    for on in (True, False):
        for count in (2, 0):
            for formulation in ("proposed", "idec"):
                row = {"weighting": {"enabled": on}, "neighbours": {"count": count}, "formulation": formulation}
                model = run(small(method=row | {"steps": 4}), tmp_path)
    assert len(list(model.glob("trainings/*"))) == 9


def test_k_means_is_scored_as_the_floor_and_changes_nothing(unbroken: Path, tmp_path: Path) -> None:
    model = run(small(method={"floor": True}), tmp_path)
    assert_same(model, unbroken)
    values = json.loads((ModelFolder(model).current().steps["floor"] / "result.json").read_text())["values"]
    assert values.keys() == {"pixels", "pca", "codes"}
    assert 0.5 < values["pixels"]["accuracy"] <= 1 and 0 < values["codes"]["nmi"] <= 1


def test_more_clusters_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"method\.clusters = 500: there are only 1"):
        run(small(method={"clusters": 500}), tmp_path)


def test_more_neighbours_than_samples_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neighbours\.count = 400"):
        run(small(method={"neighbours": {"count": 400}}), tmp_path)


def test_a_preview_counts_what_is_clustered(tmp_path: Path) -> None:
    shown = Console(record=True, width=120, quiet=False, file=io.StringIO())
    preview(small(data={"dataset": "digits", "use": "all", "val_fraction": 0}), shown)
    np.save(tmp_path / "x.npy", np.zeros((30, 7)))
    data = {"dataset": "vectors", "source": str(tmp_path / "x.npy"), "val_fraction": 0}
    preview(small(method={"clusters": 3, "augment": {}}, data=data), shown)
    text = shown.export_text()
    assert "digits: about 1797 training images, 10 classes" in text
    assert "vectors: about 30 training vectors of 7 numbers, 1 classes" in text


def test_a_method_that_learns_from_labels_is_not_tested_on_what_it_learnt(tmp_path: Path) -> None:
    job = parse_job({"name": "x", "kind": "train", "data": DATA | {"use": "all"}, "method": "dense"}, "x.yaml")
    with pytest.raises(UserError, match=r"data\.use = all: dense learns from labels"):
        run(job, tmp_path)


def test_vectors_are_clustered_and_images_changes_are_refused(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    classes = np.arange(90) % 3
    np.savez(tmp_path / "x.npz", X=1000 * np.eye(3)[classes] + random.normal(size=(90, 3)), y=classes)
    data = {"dataset": "vectors", "source": str(tmp_path / "x.npz"), "val_fraction": 0}
    method = {"network": {**SMALL["network"], "scaling": "standard"}, "pretrain": {"steps": 150}, "augment": {}}
    model = run(small(method=method, data=data), tmp_path / "run")
    last = [line for line in log_of(model) if line["kind"] == "refresh"][-1]
    assert last["accuracy"] > 0.9
    with pytest.raises(UserError, match="leave out augment"):
        run(small(data=data), tmp_path / "other")
    with pytest.raises(UserError, match="dense sees images"):
        run(parse_job({"name": "x", "kind": "train", "data": data, "method": "dense"}, "x.yaml"), tmp_path / "dense")


def test_codes_that_are_not_finite_end_the_run_with_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(self: object, inputs: Tensor) -> dict[str, Tensor]:
        return {"own": torch.full((len(inputs), 4), torch.nan)}

    monkeypatch.setattr("moe_dist.methods.edcwrn.network.ClusteringNetwork.encoded", lost)
    with pytest.raises(UserError, match="the codes are not finite any more: lower the learning rate"):
        run(small("idec"), tmp_path)


def test_parts_of_a_batch_are_refused_where_neighbours_are_of_the_batch(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="micro_batches"):
        run(small(method=BATCH, parallel={"micro_batches": 2}), tmp_path)


def test_the_report_has_the_curves_the_weights_and_the_numbers(unbroken: Path) -> None:
    build_report(unbroken.parent)
    metrics = json.loads((unbroken.parent / "metrics.json").read_text())
    assert metrics["edcwrn/clustering_steps"] == 9 and metrics["edcwrn/inter_cluster_variance"] > 0
    assert 0 < metrics["edcwrn/training_labels_accuracy"] <= 1
    figures = {path.stem for path in (unbroken.parent / "figures").iterdir()}
    assert {"target_edcwrn", "weights_edcwrn", "tsne", "clusters_edcwrn"} <= figures
