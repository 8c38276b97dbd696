"""The Ray launcher gives the same losses as the local one, with one and two workers and after a worker was killed."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from built_data import built_data
from rich.console import Console
from run_folders import checkpoints_of, evaluation_of, log_of, training_of
from small_jobs import dfcp, quiet, traditional

from moe_dist.engine.checkpoint import load_arrays, read_state
from moe_dist.errors import UserError
from moe_dist.job import Job, parse_job
from moe_dist.launch.choose import open_launcher
from moe_dist.launch.launcher import Launcher
from moe_dist.launch.phases import Drive
from moe_dist.launch.ray import embedded_cpus, ray_launcher
from moe_dist.places import cache_folder
from moe_dist.record.run_record import RunRecord
from moe_dist.run.run import run_model
from moe_dist.terminal import Show
from moe_dist.train.checkpoints import checkpoints
from moe_dist.train.log import TrainingLog


def run(job: Job, folder: Path, launcher: Launcher) -> dict[int, float]:
    """Loss by step of the job's only method."""
    data = built_data(job.data, job.seed, cache_folder())
    folder.mkdir(parents=True, exist_ok=True)
    record = RunRecord(folder, job, data, launcher.name)
    run_model(Drive(job, folder, data, launcher, record, quiet()), job.method.name)
    return curve(training_of(folder / job.method.name) / "metrics.jsonl")


def curve(path: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def run_locally(job: Job, folder: Path) -> dict[int, float]:
    with open_launcher("local", job, folder, quiet()) as launcher:
        return run(job, folder, launcher)


@pytest.fixture(scope="module")
def ray_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ray")


@pytest.fixture(scope="module")
def ray(ray_home: Path) -> Iterator[Launcher]:
    """One embedded Ray for all tests of this file, because starting it takes long."""
    with open_launcher("ray", traditional(workers=2), ray_home, quiet()) as launcher:
        yield launcher


def with_job(launcher: Launcher, job: Job, folder: Path) -> Launcher:
    """A launcher for another job, on the same Ray."""
    return type(launcher)(job, folder, quiet())  # type: ignore[call-arg]


@pytest.mark.slow
def test_two_ray_workers_give_the_curve_of_one(ray: Launcher, tmp_path: Path) -> None:
    """Through the whole of DFCP-MoE: experts as tasks of their own, joint stage on two workers, dropout 0.

    Two micro-batches: one worker adds the two gradients that two workers have each, so the curves are the same bits.
    """
    job = dfcp(workers=2, parallel={"micro_batches": 2})
    two = run(job, tmp_path / "two", with_job(ray, job, tmp_path / "two"))
    one = run_locally(dfcp(parallel={"micro_batches": 2}), tmp_path / "one")
    assert two == one
    left, right = (np.load(evaluation_of(tmp_path / name / "dfcp") / "predictions.npz") for name in ("one", "two"))
    assert np.allclose(left["log_probs"], right["log_probs"], atol=1e-4)


@pytest.mark.slow
def test_two_ray_workers_refresh_a_deep_clustering_as_one_does(ray: Launcher, tmp_path: Path) -> None:
    """Targets, neighbours and labels of all samples, which the ranks' codes make together."""
    method = {"name": "edcwrn", "network": {"hidden": [16], "code": 4}, "pretrain": {"steps": 8}, "batch_size": 24}
    method |= {"steps": 9, "refresh_every": 4, "kmeans_restarts": 1}
    data = {"dataset": "digits", "image_size": 8, "val_fraction": 0, "max_train_images": 120, "max_test_images": 40}
    content = {"name": "small", "kind": "train", "data": data, "method": method, "parallel": {"micro_batches": 2}}
    one, two = (parse_job(content | {"workers": workers}, "small.yaml") for workers in (1, 2))
    assert run(two, tmp_path / "two", with_job(ray, two, tmp_path / "two")) == run_locally(one, tmp_path / "one")
    found = [load_arrays(checkpoints(checkpoints_of(tmp_path / name / "edcwrn"))[-1]) for name in ("one", "two")]
    assert found[0].keys() == found[1].keys() == {"label", "neighbours", "target"}
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_ray_workers_give_the_very_curve_and_the_chosen_epoch_of_the_local_launcher(
    workers: int, ray: Launcher, tmp_path: Path
) -> None:
    """With such large steps the last epoch is not the best one on validation, which is kept.

    Two micro-batches: one worker adds the two gradients that two workers have each.
    """
    gate = traditional().method.gate.model_dump() | {"optimiser": {"kind": "adam", "learning_rate": 0.1}}
    on_ray, job = (
        traditional(gate=gate, epochs=8, checkpoint={"keep": 1}, workers=ranks, parallel={"micro_batches": 2})
        for ranks in (workers, 1)
    )
    curve_on_ray = run(on_ray, tmp_path / "ray", with_job(ray, on_ray, tmp_path / "ray"))
    assert curve_on_ray == run_locally(job, tmp_path / "local")
    by_ray, locally = (evaluation_of(tmp_path / name / "traditional_moe") for name in ("ray", "local"))
    chosen = [json.loads((folder / "evaluation.json").read_text())["chosen"] for folder in (by_ray, locally)]
    assert chosen[0]["epoch"] == chosen[1]["epoch"] < 8
    assert chosen[0]["top1"] == chosen[1]["top1"]
    with np.load(by_ray / "predictions.npz") as left, np.load(locally / "predictions.npz") as right:
        assert np.array_equal(left["chosen_argmax"], right["chosen_argmax"])
        assert not np.array_equal(left["chosen_argmax"], left["log_probs"].argmax(1))


KILLED_AT = 64
"""A step after a checkpoint, and not the last of an epoch."""


def killed_once(killed: Path) -> Callable[[dict[str, Any]], None]:
    """What a worker runs: the training, and kill -9 of itself after a step, unless the file `killed` is there.

    From outside, a busy machine could see the step when the training has ended. The function is pickled by value.
    """

    def train_until_killed(packed: dict[str, Any]) -> None:
        from moe_dist.launch.ray_trainer import train_worker

        write = TrainingLog.write

        def write_and_die(log: TrainingLog, *line: Any, **facts: Any) -> None:
            write(log, *line, **facts)
            _, _, _, step, _ = line
            if step == KILLED_AT and not killed.exists():
                killed.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

        TrainingLog.write = write_and_die  # type: ignore[method-assign]
        train_worker(packed)

    return train_until_killed


@pytest.mark.chaos
def test_a_killed_worker_is_started_again_and_the_end_is_the_same(
    ray: Launcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After kill -9 of a worker, Ray Train restarts it, and it continues from its last checkpoint."""
    job, killed = traditional(epochs=40, checkpoint={"every_steps": 10, "every_epochs": 1}), tmp_path / "killed"
    launcher, output, restarts = with_job(ray, job, tmp_path / "ray"), io.StringIO(), []
    launcher._show, launcher._survived = Show(Console(file=output, width=300)), restarts.append
    with monkeypatch.context() as patch:
        patch.setattr("moe_dist.launch.ray_trainer.train_worker", killed_once(killed))
        restarted = run(job, tmp_path / "ray", launcher)
    lines = log_of(tmp_path / "ray" / "traditional_moe")
    assert lines[0]["time"] < killed.stat().st_mtime < lines[-1]["time"], "it went on, not from the start"
    assert restarted == run_locally(job, tmp_path / "local")
    left, right = (evaluated(tmp_path / name / "traditional_moe") for name in ("ray", "local"))
    assert np.array_equal(left, right)
    restart = restarts[-1]
    assert (restart["kind"], restart["ranks"], restart["step"]) == ("worker died", [0], KILLED_AT)
    assert restart["from_step"] in (50, 54, 60), "Ray may not have heard yet of the two that were saved last"
    assert restart["seconds_lost"] > 0
    told = [line.strip() for line in output.getvalue().splitlines() if "died" in line]
    assert len(told) == 1, "one sentence"
    assert told[0].startswith(f"! the worker of rank 0 (process {killed.read_text()} on ")


def evaluated(model: Path) -> np.ndarray:
    with np.load(evaluation_of(model) / "predictions.npz") as predictions:
        return predictions["log_probs"]


@pytest.mark.chaos
def test_ray_goes_on_after_a_local_run_and_the_other_way_round(ray: Launcher, tmp_path: Path) -> None:
    """Ray's snapshot names checkpoints older than those of a local run since then; the folder counts."""
    job, folder = traditional(epochs=6, checkpoint={"keep": 9}), tmp_path / "mixed"
    whole = run_locally(job, tmp_path / "local")
    run(job, folder, with_job(ray, job, folder))
    rewind(folder / "traditional_moe", 12)
    assert run_locally(job, folder) == whole
    rewind(folder / "traditional_moe", 24)
    assert run(job, folder, with_job(ray, job, folder)) == whole


def rewind(model: Path, step: int) -> None:
    """Set a finished training back to its state after `step`."""
    (training_of(model) / "training.json").unlink()
    folder = checkpoints_of(model)
    for checkpoint in checkpoints(folder):
        if read_state(checkpoint)["step"] > step:
            shutil.rmtree(checkpoint)


def test_a_diverged_loss_is_one_sentence_from_ray_too(ray: Launcher, tmp_path: Path) -> None:
    gate = traditional().method.gate.model_dump() | {"optimiser": {"kind": "sgd", "learning_rate": 1e30}}
    job = traditional(gate=gate)
    with pytest.raises(UserError, match="the loss diverged: term `combined`"):
        run(job, tmp_path, with_job(ray, job, tmp_path))


def test_an_embedded_ray_has_room_for_the_workers_that_are_asked_for() -> None:
    assert embedded_cpus(traditional(workers=64)) == 64


def test_a_cluster_of_another_version_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as ray_itself

    def refuse(address: str, **options: Any) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40\n    Python: 3.12")

    monkeypatch.setattr("moe_dist.launch.ray.cluster_address", lambda: "head:6379")
    monkeypatch.setattr(ray_itself, "init", refuse)
    monkeypatch.setattr(ray_itself, "shutdown", lambda: None)
    said = r"^RAY_ADDRESS head:6379: this machine cannot run on that cluster \(Version mismatch: .* Ray: 2\.40 Python"
    with pytest.raises(UserError, match=said), ray_launcher(traditional(), tmp_path, quiet()):
        pass


def test_a_machine_too_busy_for_ray_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray as ray_itself

    def too_late(**options: Any) -> None:
        raise Exception("The current node timed out during startup. This could happen because ...")

    monkeypatch.setattr("moe_dist.launch.ray.cluster_address", lambda: None)
    monkeypatch.setattr(ray_itself, "init", too_late)
    monkeypatch.setattr(ray_itself, "shutdown", lambda: None)
    with (
        pytest.raises(UserError, match=r"Ray did not start within the minute .* or with --launcher local"),
        ray_launcher(traditional(), tmp_path, quiet()),
    ):
        pass


@pytest.mark.parametrize("address", ["", "local"])
def test_a_missing_gpu_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("moe_dist.launch.ray._start_ray", lambda cpus, address: pytest.fail("Ray is started"))
    job = traditional(resources={"gpus_per_worker": 1})
    with pytest.raises(UserError, match="torch sees none"), open_launcher("ray", job, tmp_path, quiet()):
        pass


def test_tasks_give_results_in_order_and_a_bad_one_ends_them(ray: Launcher) -> None:
    def in_turn(common: str, item: int, context: Any) -> str:
        """Fail for item 2 and be slow for item 3. A nested function is pickled by value for Ray's workers."""
        if item == 2:
            raise UserError("item 2 is bad")
        if item == 3:
            time.sleep(5)
        return f"{common} {item}"

    assert list(ray.run_tasks(in_turn, [1, 0, 4], "task")) == ["task 1", "task 0", "task 4"]
    with pytest.raises(UserError, match="item 2 is bad"):
        list(ray.run_tasks(in_turn, [0, 2, 3, 3], "task"))
    assert next(iter(ray.run_tasks(in_turn, [0], "after"))) == "after 0", "Ray is whole and free again"
