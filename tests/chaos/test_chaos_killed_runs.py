"""kill -9 of a whole run at random moments: gone on with, it ends bit-identical to one that was never killed."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path

import numpy as np
import pytest
from run_folders import checkpoints_of, training_of
from safetensors.numpy import load_file
from small_jobs import quiet, traditional

from moe_dist.job import Job, parse_job
from moe_dist.places import ModelFolder
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.log import last_metrics

pytestmark = pytest.mark.chaos

REPEATS = 20
JOB = traditional(checkpoint={"every_steps": 2})
STEPS = 18
CLUSTERING = parse_job(
    {
        "name": "small",
        "kind": "train",
        "data": {"dataset": "digits", "use": "all", "image_size": 8, "val_fraction": 0},
        "method": {
            "name": "edcwrn",
            "network": {"hidden": [16], "code": 4},
            "pretrain": {"steps": 40},
            "refresh_every": 4,
            "steps": 40,
            "kmeans_restarts": 2,
        },
        "checkpoint": {"every_steps": 2},
    },
    "small.yaml",
)
CLUSTERING_REPEATS = 5
FORK = multiprocessing.get_context("fork")  # a child has everything imported: a repeat costs a second


def run(job: Job, folder: Path) -> None:
    run_job(job, folder, "local", quiet())


def start(folder: Path, job: Job = JOB) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=run, args=(job, folder))
    process.start()
    return process


def kill_at_step(folder: Path, step: int) -> None:
    """Run until the log shows `step` (0: as soon as there is a folder), then kill -9."""
    process = start(folder)
    while process.is_alive():
        line = last_metrics(training_of(folder / "traditional_moe") / "metrics.jsonl")
        if folder.exists() if step == 0 else line is not None and line["step"] >= step:
            process.kill()
        time.sleep(0.001)
    process.join()


def last_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    checkpoints = checkpoints_of(folder / "traditional_moe")
    newest = newest_checkpoint(checkpoints)
    assert newest is not None
    files = newest.glob("*.safetensors")
    return {f"{path.name}/{name}": tensor for path in files for name, tensor in load_file(path).items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """The last checkpoint of a run that was never killed."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder / "run")
    process.join()
    assert process.exitcode == 0
    return last_checkpoint(folder / "run")


@pytest.mark.parametrize("seed", range(REPEATS))
def test_a_run_that_is_killed_at_random_ends_as_the_unbroken_one(
    tmp_path: Path, whole: dict[str, np.ndarray], seed: int
) -> None:
    chance = random.Random(seed)
    folder = tmp_path / "run"
    for step in sorted(chance.randint(0, STEPS) for _ in range(chance.randint(1, 2))):
        kill_at_step(folder, step)
    process = start(folder)
    process.join()
    assert process.exitcode == 0, "it goes on after its kills"
    ended = last_checkpoint(folder)
    assert ended.keys() == whole.keys()
    for name, tensor in whole.items():
        assert np.array_equal(ended[name], tensor, equal_nan=name.startswith("random")), name


def result_of(folder: Path) -> dict[str, np.ndarray]:
    """Both networks' weights and the labels of a deep clustering."""
    model = ModelFolder(folder / "edcwrn")
    current = model.current()
    trainings = [*current.earlier.values(), *filter(None, [current.training])]
    found = {}
    for training in trainings:
        newest = newest_checkpoint(training / "checkpoints")
        assert newest is not None
        found |= {f"{training.name}/{path.name}": load_file(path) for path in newest.glob("*.safetensors")}
    assert current.evaluation
    predictions = np.load(current.evaluation / "predictions.npz")
    tensors = {f"{file}/{name}": tensor for file, all_of in found.items() for name, tensor in all_of.items()}
    return tensors | {name: predictions[name] for name in predictions.files}


@pytest.fixture(scope="module")
def whole_clustering(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, np.ndarray], float]:
    """What a deep clustering that was never killed ends with, and its seconds."""
    folder, begun = tmp_path_factory.mktemp("clustering") / "run", time.monotonic()
    process = start(folder, CLUSTERING)
    process.join()
    assert process.exitcode == 0
    return result_of(folder), time.monotonic() - begun


@pytest.mark.parametrize("seed", range(CLUSTERING_REPEATS))
def test_a_deep_clustering_that_is_killed_anywhere_ends_as_the_unbroken_one(
    tmp_path: Path, whole_clustering: tuple[dict[str, np.ndarray], float], seed: int
) -> None:
    """In pretraining, in k-means, between an update of the target and its next step, in what is written of them."""
    (whole, seconds), chance = whole_clustering, random.Random(seed)
    folder = tmp_path / "run"
    for _ in range(2):
        process = start(folder, CLUSTERING)
        process.join(chance.uniform(0.0, seconds))
        process.kill()
        process.join()
    process = start(folder, CLUSTERING)
    process.join()
    assert process.exitcode == 0, "it goes on after its kills"
    ended = result_of(folder)
    assert ended.keys() == whole.keys() and len(whole) > 10
    for name, tensor in whole.items():
        assert np.array_equal(ended[name], tensor, equal_nan=tensor.dtype.kind == "f"), name
