"""Grad-CAM, features, and the files that an evaluation keeps of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from run_folders import evaluation_of, training_of
from small_jobs import quiet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn import functional

from moe_dist.data.batch import DatasetInfo
from moe_dist.engine.choose import IN_ONE_PROCESS
from moe_dist.evaluate.pictures import grad_cam, spaced
from moe_dist.job import parse_job
from moe_dist.methods.longtail.cross_entropy import CrossEntropy
from moe_dist.methods.longtail.method import BranchMethod
from moe_dist.models.branches import BranchNetwork, NetworkConfig, build_branches
from moe_dist.models.makers import ExpertMaps
from moe_dist.run.run import run_job

EXPERTS, CLASSES = 2, 3
COUNTS, LARGEST_FIRST = [8, 30, 3, 20], [1, 3, 0, 2]
TESTED = 6
"""Test images of every class."""


def test_grad_cam_of_one_convolution_by_its_formula() -> None:
    """Maps A = conv(x), features their means, logits W h: then dz_c / dA_k = W_ck / s^2 everywhere on the map."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 6, 6)
    labels = torch.tensor([2, 0, 1, 2])
    kernels = torch.randn(EXPERTS, 5, 3, 3, 3, requires_grad=True)
    weights = torch.randn(EXPERTS, CLASSES, 5)
    maps = [functional.conv2d(images, kernel, padding=1) for kernel in kernels]
    logits = torch.stack([own.mean((2, 3)) @ weight.T for own, weight in zip(maps, weights)], 1)
    cams = grad_cam(ExpertMaps(maps, logits), labels)
    assert cams.shape == (4, EXPERTS, 6, 6) and not cams.requires_grad
    for expert in range(EXPERTS):
        by_hand = torch.einsum("nk,nkij->nij", weights[expert][labels], maps[expert]).clamp_min(0) / 36
        torch.testing.assert_close(cams[:, expert], by_hand)
    assert (cams == 0).any() and (cams > 0).any()


@pytest.mark.parametrize("fresh", [False, True])
def test_expert_maps_belong_to_the_logits_that_speak(fresh: bool) -> None:
    network = build_branches(NetworkConfig(width=2), CLASSES, 16, 3, IN_ONE_PROCESS, seed=1).eval()
    if fresh:
        network.train_classifiers_only()
    images = torch.randn(2, 3, 16, 16)
    shown = network.expert_maps(images)
    assert [tuple(deep.shape) for deep in shown.maps] == [(2, 8, 4, 4)] * 3
    features, logits = network(images)
    torch.testing.assert_close(shown.logits, logits)
    torch.testing.assert_close(torch.stack([deep.mean((2, 3)) for deep in shown.maps], 1), features)


def test_features_are_the_experts_directions_side_by_side() -> None:
    info = DatasetInfo(CLASSES, tuple("abc"), 16, 30, (10, 10, 10))
    config = CrossEntropy.Config.model_validate({"name": "cross_entropy", "network": {"width": 2}, "experts": EXPERTS})
    method: BranchMethod = CrossEntropy(config, info)
    network = method.build(IN_ONE_PROCESS, {}, seed=0).eval()
    assert isinstance(network, BranchNetwork)
    images = torch.randn(2, 3, 16, 16)
    own = network(images).features
    by_hand = torch.cat([own[:, expert] / own[:, expert].norm(dim=1, keepdim=True) for expert in range(EXPERTS)], 1)
    torch.testing.assert_close(method.features(network, images), by_hand)


def test_spaced_takes_both_ends() -> None:
    assert spaced(np.arange(100), 10).tolist() == [0, 11, 22, 33, 44, 55, 66, 77, 88, 99]
    assert spaced(np.array([7, 3, 5]), 10).tolist() == [7, 3, 5]
    assert spaced(np.array([7, 3, 5]), 2).tolist() == [7, 5]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two experts of width 2 on four classes of noise, 16 pixels, one epoch."""
    folder = tmp_path_factory.mktemp("tail")
    write_images(folder / "own")
    stage = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "warmup_epochs": 0, "augment": {}}
    method = {"name": "cross_entropy", "network": {"width": 2}, "experts": EXPERTS, "features": stage}
    data = {"dataset": "image_folder", "source": str(folder / "own"), "image_size": 16, "val_fraction": 0}
    job = parse_job({"name": "tail", "kind": "train", "data": data, "method": method}, "tail.yaml")
    run_job(job, folder / "run", "local", quiet())
    return folder / "run"


def write_images(folder: Path) -> None:
    """train|test/<class>/*.png of noise."""
    random = np.random.default_rng(0)
    for split, counts in (("train", COUNTS), ("test", [TESTED] * len(COUNTS))):
        for label, count in enumerate(counts):
            (folder / split / f"class{label}").mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(40 * label, 40 * label + 60, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / f"class{label}" / f"{number}.png")


def test_an_evaluation_keeps_what_pictures_are_drawn_from(run: Path) -> None:
    evaluation = evaluation_of(run / "cross_entropy")
    assert json.loads((run / "run.json").read_text())["class_counts"] == COUNTS
    with np.load(evaluation / "predictions.npz") as arrays:
        exact = arrays["experts_log_probs"].astype(np.float64)
        p, q = exact[:, 0], exact[:, 1]
        np.testing.assert_allclose(
            arrays["experts_divergence"], ((np.exp(p) - np.exp(q)) * (p - q)).sum(1), atol=2e-3, rtol=2e-2
        )
    with np.load(evaluation / "tsne.npz") as arrays:
        assert arrays["points"].shape == (TESTED * len(COUNTS), 2) and np.isfinite(arrays["points"]).all()
        assert list(dict.fromkeys(arrays["labels"].tolist())) == LARGEST_FIRST
    with np.load(evaluation / "grad_cam.npz") as arrays:
        assert arrays["labels"].tolist() == LARGEST_FIRST
        assert arrays["images"].shape == (4, 3, 16, 16) and arrays["images"].dtype == np.uint8
        assert arrays["cams"].shape == (4, EXPERTS, 4, 4) and (arrays["cams"] >= 0).all()
        assert arrays["predicted"].shape == (4, EXPERTS)


def test_the_report_has_groups_experts_and_figures(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"cross_entropy/top1_medium", "cross_entropy/expert1_top1_few"} <= metrics.keys()
    names = {path.stem for path in (run / "figures").iterdir()}
    assert {"tsne", "grad_cam_cross_entropy", "gradient_shares", "divergence_of_experts"} <= names


def test_tensorboard_has_terms_and_gradient_shares(run: Path) -> None:
    board = EventAccumulator(str(training_of(run / "cross_entropy") / "tensorboard")).Reload()
    assert {"step/loss/cross_entropy", "epoch/gradient_share/expert_1"} <= set(board.Tags()["scalars"])
    (event,) = board.Scalars("epoch/gradient_share/expert_1")
    lines = [
        json.loads(line) for line in (training_of(run / "cross_entropy") / "metrics.jsonl").read_text().splitlines()
    ]
    assert event.step == lines[-1]["step"]
    assert event.value == pytest.approx(lines[-1]["gradient_share/expert_1"], rel=1e-6)
