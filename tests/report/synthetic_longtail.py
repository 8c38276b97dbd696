"""Writes run directories of long-tail methods, with invented numbers of known shape."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from synthetic_run import write_run

from moe_dist.data.longtail import profile
from moe_dist.metrics.classification import pairwise_divergence

EXPERTS, SIDE, MAP = 3, 32, 8
FULL = profile(500, 100, 100).tolist()
"""CIFAR-100-LT's classes at imbalance 100."""


def write_longtail_run(
    path: Path, methods: Mapping[str, Any], counts: Sequence[int] = FULL, *, pictures: bool = True
) -> Path:
    """A run directory at `path`; methods: model -> settings; counts [C]: training images; pictures: t-SNE, Grad-CAM."""
    sizes = np.array(counts)
    names = [f"class {label}" for label in range(len(sizes))]
    write_run(
        path,
        names,
        methods=list(methods),
        test_images=10 * len(sizes),
        dataset="cifar100",
        paper_table=None,
    )
    content = yaml.safe_load((path / "job.yaml").read_text()) | {"methods": dict(methods)}
    (path / "job.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    record = json.loads((path / "run.json").read_text())
    record |= {"class_counts": sizes.tolist(), "counts": record["counts"] | {"train": int(sizes.sum()), "val": 0}}
    (path / "run.json").write_text(json.dumps(record))
    for number, model in enumerate(methods):
        _write_model(path / model, np.random.default_rng(number), sizes, level=0.8 - 0.15 * number)
        if pictures:
            _write_pictures(path / model / "evaluation", np.random.default_rng(number), sizes)
    return path


def _write_model(folder: Path, random: np.random.Generator, sizes: np.ndarray, level: float) -> None:
    """Experts that know large classes better than small ones, and their log."""
    evaluation = folder / "evaluation"
    with np.load(evaluation / "predictions.npz") as old:
        labels = old["labels"]
    logits = random.normal(size=(len(labels), EXPERTS, len(sizes)))
    logits += 1.5 * random.normal(size=(len(labels), 1, len(sizes)))
    own = np.arange(len(labels)), slice(None), labels
    logits[own] += 8 * level * (sizes[labels] / sizes.max())[:, None] ** 0.25
    log_probs = logits - np.log(np.exp(logits).sum(2, keepdims=True))
    mean = logits.mean(1)
    np.savez(
        evaluation / "predictions.npz",
        labels=labels,
        log_probs=(mean - np.log(np.exp(mean).sum(1, keepdims=True))).astype(np.float32),
        experts_argmax=logits.argmax(2).astype(np.int16),
        experts_divergence=pairwise_divergence(log_probs).astype(np.float32),
    )
    _write_shares(folder, random)


def _write_pictures(evaluation: Path, random: np.random.Generator, sizes: np.ndarray) -> None:
    shown = np.linspace(0, len(sizes) - 1, min(10, len(sizes))).round().astype(np.int64)
    points = random.normal(size=(len(shown), 1, 2)) * 20 + random.normal(size=(len(shown), 40, 2)) * 6
    np.savez(evaluation / "tsne.npz", points=points.reshape(-1, 2), labels=shown.repeat(40))
    _write_grad_cam(evaluation, random, shown[:6])


def _write_shares(folder: Path, random: np.random.Generator) -> None:
    lines = []
    for stage, epochs in (("features", 40), ("classifiers", 5)):
        for epoch in range(epochs):
            record = {"time": 1.7e9, "kind": "epoch", "stage": stage, "epoch": epoch, "step": len(lines) + 1}
            record |= {"loss": 1.0, "loss/parallel": 3 / (1 + len(lines))}
            if stage == "features":
                shares = random.dirichlet([80, 90, 100])
                record |= {f"gradient_share/expert_{expert}": share for expert, share in enumerate(shares)}
            lines.append(json.dumps(record) + "\n")
    (folder / "metrics.jsonl").write_text("".join(lines))


def _write_grad_cam(folder: Path, random: np.random.Generator, labels: np.ndarray) -> None:
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    image = np.stack([255 * x, 255 * y, 128 + 0 * x]).astype(np.uint8)
    rows, columns = np.mgrid[:MAP, :MAP]
    centres = random.integers(1, MAP - 1, size=(len(labels), EXPERTS, 2, 1, 1))
    distance = (rows - centres[:, :, 0]) ** 2 + (columns - centres[:, :, 1]) ** 2
    np.savez(
        folder / "grad_cam.npz",
        images=np.repeat(image[None], len(labels), 0),
        labels=labels,
        predicted=np.stack([labels, labels, np.roll(labels, 1)], 1).astype(np.int16),
        cams=(3 * np.exp(-distance / 4)).astype(np.float32),
    )
