"""Writes run directories as `moe-dist run` leaves them, with invented numbers of known shape."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

METHODS = ("dfcp", "traditional_moe", "dense")
ACCURACY = {"dfcp": 0.97, "traditional_moe": 0.9}
TERMS = {"dfcp": ("combined", "expert", "gate"), "traditional_moe": ("combined",)}


def write_run(
    path: Path,
    names: Sequence[str],
    *,
    methods: Sequence[str] = METHODS,
    evaluated: Sequence[str] | None = None,
    test_images: int = 360,
    dataset: str = "digits",
    **job: Any,
) -> Path:
    """A run directory at `path` on the classes `names`; `evaluated`: the models that reached the test (default all)."""
    random = np.random.default_rng(len(names))
    labels = random.permutation(np.arange(test_images) % len(names))
    description = {
        "name": "demo",
        "kind": "reproduce",
        "title": "DFCP-MoE and its rivals",
        "seed": 3,
        "workers": 2,
        "data": {"dataset": dataset},
        "method": None,
        "methods": {model: {"name": model} for model in methods},
        "paper_table": "dfcp/table3",
    } | job
    record = {
        "started": "2026-01-31T12:00:00+00:00",
        "seconds": 251.3,
        "hardware": "2 x Example CPU at 2.4 GHz, 8 GiB, no GPU",
        "command": "moe-dist run jobs/demo.yaml --set workers=2",
        "version": "0.1.0",
        "split_digest": "sha256:4be1c0ffee",
        "counts": {"train": 1293, "val": 144, "test": test_images},
        "classes": list(names),
        "dataset": dataset,
        "status": "finished",
    }
    path.mkdir(parents=True)
    (path / "job.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    _write_json(path / "run.json", record)
    for model in methods:
        _write_log(path / model, random, model)
        if model == "dfcp":
            _write_steps(path / model, random, len(names))
        if evaluated is None or model in evaluated:
            _write_evaluation(path / model, random, labels, len(names), model)
    return path


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def _write_log(folder: Path, random: np.random.Generator, model: str) -> None:
    terms = TERMS.get(model, ("cross_entropy",))
    stages = [("alone", 3), ("joint", 12)] if model == "dfcp" else [("joint", 15)]
    lines, step, done = [], 0, 0
    for stage, epochs in stages:
        for epoch in range(epochs):
            done += 1
            level = np.exp(-0.25 * done)
            for kind in ("step", "step", "epoch"):
                step += kind == "step"
                values = {f"loss/{t}": level * (1 + n + 0.1 * random.random()) for n, t in enumerate(terms)}
                line = {"time": 1.7e9 + step, "kind": kind, "stage": stage, "epoch": epoch, "step": step}
                line |= {"loss": sum(values.values())} | values | {"images_per_second": 900.0}
                if kind == "epoch":
                    line |= {"val/loss": 0.1 + 1.5 * level, "val/top1": 0.97 - 0.8 * level}
                lines.append(json.dumps(line) + "\n")
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(lines))


def _write_steps(folder: Path, random: np.random.Generator, classes: int) -> None:
    scan = [
        {
            "radius": round(0.1 * n, 1),
            "davies_bouldin": 1.6 - 0.12 * n + 0.9 * (n == 9),
            "coverage": min(1.0, 0.12 * n),
            "purity": 0.99 - 0.004 * n,
        }
        for n in range(1, 10)
    ]
    confusion = np.diag(random.integers(90, 140, classes)) + (random.random((classes, classes)) < 0.1)
    results = {
        "features": ({"features": 1293, "kind": "siamese"}, {}),
        "second_stage": (
            {"scan": scan, "chosen": 0.8, "stage1_davies_bouldin": 1.42, "davies_bouldin": 0.64}
            | {"stage1_purity": 0.91},
            {"labels": np.arange(1150) % classes},
        ),
        "pseudo_labels": (
            {"threshold": 0.4321, "f1": 0.981, "accuracy": 0.9712, "outliers": 17, "purity": 0.9634}
            | {"cluster_label_accuracy": 0.9655},
            {"confusion": confusion, "cluster_sizes": confusion.sum(axis=0)},
        ),
    }
    for number, (name, (values, arrays)) in enumerate(results.items()):
        step = folder / "steps" / name
        _write_json(step / "result.json", {"values": values})
        np.savez(step / "arrays.npz", **arrays)
        _write_json(step / "done.json", {"seconds": 2.5 * (number + 1), "fingerprint": "f", "finished": 1e9 + number})


def _write_evaluation(folder: Path, random: np.random.Generator, labels: np.ndarray, classes: int, model: str) -> None:
    shown = np.where(
        random.random(len(labels)) < ACCURACY.get(model, 0.95), labels, random.integers(0, classes, len(labels))
    )
    arrays = {"labels": labels, "log_probs": _log_softmax(random, shown, classes, sharpness=6.0)}
    arrays["chosen_argmax"] = np.where(np.arange(len(labels)) % 5 == 0, (labels + 1) % classes, labels).astype(np.int16)
    latency = {"all": _latency(1.6 if model == "dense" else 0.9)}
    if model != "dense":
        gate = np.exp(_log_softmax(random, shown if model == "dfcp" else shown % 4, classes, sharpness=3.0))
        arrays["gate"] = gate
        for k in (1, 3):
            arrays[f"log_probs_top{k}"] = _log_softmax(random, shown, classes, sharpness=3.5 + k)
            latency[f"top{k}"] = _latency(0.3 + 0.1 * k)
    evaluation = folder / "evaluation"
    evaluation.mkdir()
    np.savez(evaluation / "predictions.npz", **arrays)
    about = {
        "latency": latency,
        "chosen": {"checkpoint": "checkpoint_00000170", "epoch": 17, "validation_top1": 0.875},
        "training": {"wall_seconds": 41.7, "summed_expert_seconds": None if model == "dense" else 130.2},
        "labels_used": "10 % trusted" if model == "dfcp" else "all",
        "parameters": 6_513_184 if model == "dense" else 412_077,
    }
    _write_json(evaluation / "evaluation.json", about)


def _log_softmax(random: np.random.Generator, peak: np.ndarray, classes: int, sharpness: float) -> np.ndarray:
    logits = random.normal(size=(len(peak), classes))
    logits[np.arange(len(peak)), peak] += sharpness
    return (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))).astype(np.float32)


def _latency(median: float) -> dict[str, float]:
    return {"median_ms": median, "p99_ms": 2 * median, "mean_ms": 1.1 * median, "images": 200}
