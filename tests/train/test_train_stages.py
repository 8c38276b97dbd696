"""What a stage may ask for beside epochs of all samples, as its training meets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up.clusters import Clusters
from made_up_jobs import made_up
from run_folders import log_of
from safetensors.numpy import load_file
from small_jobs import dfcp, quiet

import moe_dist.train.loop as loop
from moe_dist.data.batch import Batch, TrainingSet
from moe_dist.methods.phases import Losses, Phase, Progress, Results
from moe_dist.places import ModelFolder
from moe_dist.run.run import run_job
from moe_dist.train.checkpoints import newest_checkpoint


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports take longer than these runs."""
    monkeypatch.setattr("moe_dist.report.build.build_report", lambda path: path)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Progress, Batch, float]]:
    """Every step of a training: where it is, its batch, and the rate of its first optimiser."""
    seen: list[tuple[Progress, Batch, float]] = []
    real = loop.train_step

    def noted(method: Any, session: Any, batch: Batch, progress: Progress) -> Losses:
        seen.append((progress, batch, session.rate.factor))
        return real(method, session, batch, progress)

    monkeypatch.setattr(loop, "train_step", noted)
    return seen


def test_a_stage_trains_on_the_batches_of_its_own_order(
    tmp_path: Path, steps: list[tuple[Progress, Batch, float]]
) -> None:
    """The Siamese networks see as many images of each class that is in a batch."""
    job = dfcp()
    siamese = job.method.pseudo_labels.siamese
    run_job(job, tmp_path, "local", quiet())
    seen = [batch for progress, batch, _ in steps if progress.stage == "siamese_labels"]
    assert len(seen) > siamese.epochs
    for batch in seen:
        labels = batch.labels[batch.weight > 0].numpy()
        classes, counts = np.unique(labels, return_counts=True)
        assert len(classes) == 10 and set(counts) == {siamese.images_per_class}


def test_a_rate_by_step_follows_the_cosine_over_the_whole_stage(
    tmp_path: Path, steps: list[tuple[Progress, Batch, float]]
) -> None:
    run_job(made_up("made_up_clusters", {"steps": 4, "pretrain_epochs": 2}), tmp_path, "local", quiet())
    rates = [(progress.stage_step, progress.stage_steps, rate) for progress, _, rate in steps if rate is not None]
    pretraining = [entry for entry, (progress, _, _) in zip(rates, steps) if progress.stage == "pretrain"]
    assert len(pretraining) > 2 and {total for _, total, _ in pretraining} == {len(pretraining)}
    for step, total, rate in pretraining:
        assert rate == pytest.approx((1 + math.cos(math.pi * step / total)) / 2)


def test_a_stage_is_validated_on_the_set_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three samples of three other clusters: the score is one of 0, 1/3, 2/3 and 1."""
    phases, scored = Clusters.phases, []

    def three(results: Results, labels: np.ndarray, samples: np.ndarray) -> TrainingSet:
        return TrainingSet(samples[:3], labels[samples[:3]])

    def with_three(self: Clusters) -> Sequence[Phase]:
        *before, last = phases(self)
        return *before, replace(last, validation_set=three)

    def score(self: Clusters, measured: dict[str, np.ndarray], labels: np.ndarray) -> dict[str, float]:
        scored.append((len(measured["cluster"]), labels.tolist()))
        return {"accuracy": 0.5}

    monkeypatch.setattr(Clusters, "phases", with_three)
    monkeypatch.setattr(Clusters, "score", score)
    run_job(made_up("made_up_clusters", {"steps": 7, "pretrain_epochs": 1}), tmp_path, "local", quiet())
    assert scored and all(count == len(labels) == 3 for count, labels in scored)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_logged_values_are_means_over_the_batch_and_no_part_of_the_loss(
    micro_batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loss(self: Clusters, network: torch.nn.Module, batch: Batch, progress: Progress) -> Losses:
        return Losses({"zero": 0 * network.centres.sum()}, {"ten": batch.mean(torch.tensor(10.0))})

    monkeypatch.setattr(Clusters, "loss", loss)
    job = made_up("made_up_clusters", {"steps": 4, "pretrain_epochs": 1}, parallel={"micro_batches": micro_batches})
    run_job(job, tmp_path, "local", quiet())
    steps = [line for line in log_of(tmp_path / "made_up_clusters") if line["kind"] == "step"]
    assert steps and all((line["loss"], line["ten"]) == (0, pytest.approx(10)) for line in steps)


@pytest.mark.parametrize(("workers", "micro_batches"), [(1, 2), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_replicated_stage_is_the_same_on_any_workers_and_micro_batches(
    workers: int, micro_batches: int, tmp_path: Path
) -> None:
    """Batch normalisation and pairs see the whole batch: the Siamese networks' tensors are equal to the last bit."""
    run_job(dfcp(), tmp_path / "one", "local", quiet())
    run_job(dfcp(workers=workers, parallel={"micro_batches": micro_batches}), tmp_path / "other", "local", quiet())
    found = []
    for run in ("one", "other"):
        trained = ModelFolder(tmp_path / run / "dfcp").current().earlier["siamese_labels"]
        newest = newest_checkpoint(trained / "checkpoints")
        assert newest is not None
        found.append(load_file(newest / "dense.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert np.array_equal(found[0][name], found[1][name]), name
