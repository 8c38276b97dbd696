"""ICL with live batch normalisation ends at the same accuracy however its experts are spread, within the seeds' spread.

    pytest tests/distributed/test_distributed_icl_live_norm.py -m slow -s

prints the table of docs/spread_experts.md. Losses differ from the first step on, because a rank's trunk normalises with
its own share of the batch; what can be compared is where trainings end.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest
import torch
import worlds as worlds_module
from scipy.stats import dunnett
from sklearn.datasets import load_digits
from worlds import World

from moe_dist.data.longtail import profile
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import open_data
from moe_dist.evaluate.predictions import load_network, predict_test
from moe_dist.job import Job, parse_job
from moe_dist.launch.launcher import Context
from moe_dist.launch.progress import ProgressFile
from moe_dist.record.fingerprints import fingerprint
from moe_dist.train.checkpoints import newest_checkpoint
from moe_dist.train.loop import train
from moe_dist.train.task import TrainingTask, open_method
from moe_dist.train.worker import LocalWorker
from tests.data.pictures import encode

CPU = torch.device("cpu")
SETTINGS = ((1, 1), (2, 2), (3, 1), (3, 3))
"""(workers, parallel.expert); all are compared with the first, one process."""
SEEDS = range(5)
EPOCHS = 24
TRAIN, TEST, IMBALANCE = 130, 40, 10
"""Training images of the largest class, test images of every class."""


def write_digits(root: Path) -> None:
    """scikit-learn's digits as an image folder, the training images long-tailed."""
    digits = load_digits()
    for label, kept in enumerate(profile(TRAIN, IMBALANCE, 10)):
        images = np.flatnonzero(digits.target == label)
        for split, numbers in (("test", images[:TEST]), ("train", images[TEST : TEST + kept])):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for number in numbers:
                pixels = (digits.images[number] * (255 / 16)).astype(np.uint8)
                (folder / f"{number}.png").write_bytes(encode(pixels, "PNG"))


def job_of(source: Path, workers: int, expert: int, seed: int, epochs: int) -> Job:
    """ICL with three experts of width 8, a rank's share of a batch being 48, 24 or 16 images."""
    stage = {"batch_size": 48, "learning_rate": 0.05, "warmup_epochs": 1, "augment": {"pad_crop": 1}}
    method = {"name": "icl", "network": {"width": 8, "scale": 16}, "experts": 3, "diversity_weight": 0.3}
    method |= {"t_ad": epochs // 4, "t_cl": epochs // 2}
    method |= {"features": stage | {"epochs": epochs}, "classifiers": stage | {"epochs": 2}}
    data = {"dataset": "image_folder", "source": str(source), "image_size": 8, "val_fraction": 0}
    content = {"name": "live-norm", "kind": "train", "seed": seed, "workers": workers, "data": data, "method": method}
    return parse_job(content | {"parallel": {"expert": expert}, "checkpoint": {"every_epochs": 100}}, "live-norm")


def task_of(root: Path, job: Job) -> TrainingTask:
    (model,) = job.models
    digest = fingerprint(job.model_dump(mode="json"))
    run = root / digest[:12]
    cache = root / "cache"
    return TrainingTask(job, model, run, cache, ensure_shards(job.data, cache), run / model, {})


def train_rank(rank: int, ranks: int, task: TrainingTask) -> None:
    """A case for a World: a whole training, as a launcher's rank does it."""
    train(LocalWorker(task.checkpoints, 1, rank, ranks, CPU), task)


def accuracy(task: TrainingTask) -> float:
    """Top-1 accuracy of the last checkpoint on the test images."""
    data = open_data(task.job.data, task.job.seed, task.cache, task.shards)
    method = open_method(task.job, task.model, data)
    checkpoint = newest_checkpoint(task.checkpoints)
    assert checkpoint is not None
    network = load_network(task, method, checkpoint)
    outputs = predict_test(method, network, data, Context(CPU, ProgressFile(task.run / "progress.json")))
    return float((outputs["log_probs"].argmax(1) == outputs["labels"]).mean())


def told_apart(accuracies: dict[str, list[float]]) -> list[str]:
    """The settings whose mean differs from the first one's by Dunnett's test, at 5 % for all of them together."""
    control, *others = accuracies.values()
    pvalues = dunnett(*others, control=control, rng=0).pvalue
    return [setting for setting, pvalue in zip(list(accuracies)[1:], pvalues) if pvalue < 0.05]


@pytest.fixture
def accuracy_of(
    worlds: dict[int, World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, int, int, int], float]:
    """The test accuracy that a training with (workers, parallel.expert, seed, epochs of stage one) ends at."""
    monkeypatch.setattr(worlds_module, "CASE_SECONDS", 900)  # a whole training
    write_digits(tmp_path / "digits")

    def run(workers: int, expert: int, seed: int, epochs: int) -> float:
        task = task_of(tmp_path, job_of(tmp_path / "digits", workers, expert, seed, epochs))
        worlds[workers].run(train_rank, task)
        return accuracy(task)

    return run


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_experts_end_at_the_same_accuracy_wherever_they_are(
    accuracy_of: Callable[[int, int, int, int], float],
) -> None:
    """The judge tells a training of half the epochs apart, and none of the ways to spread the experts."""
    ended = {f"{w} workers, expert: {e}": [accuracy_of(w, e, seed, EPOCHS) for seed in SEEDS] for w, e in SETTINGS}
    control = next(iter(ended.values()))
    shorter = [accuracy_of(1, 1, seed, EPOCHS // 2) for seed in SEEDS]
    for setting, values in [*ended.items(), ("half the epochs", shorter)]:
        print(f"{setting}: {[round(100 * value, 1) for value in values]}, {mean(values):.2%} +- {stdev(values):.2%}")
    assert mean(control) > 0.5, "what has learnt nothing ends alike"
    assert told_apart(ended) == []
    assert told_apart({"whole": control, "half the epochs": shorter, "the same": control}) == ["half the epochs"]


def test_the_judge_tells_a_difference_from_the_seeds_spread() -> None:
    """Means 0.6 and 0.7, standard deviation 0.01, 3 seeds: t = 0.1 / (0.01 sqrt(2/3)) = 12. Spread of 0.1: t = 1.2."""
    assert told_apart({"one": [0.59, 0.6, 0.61], "other": [0.69, 0.7, 0.71], "same": [0.6, 0.61, 0.59]}) == ["other"]
    assert told_apart({"one": [0.5, 0.6, 0.7], "other": [0.6, 0.7, 0.8], "same": [0.7, 0.6, 0.5]}) == []
