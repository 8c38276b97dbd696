"""Jobs small enough for a test: digits at 16 pixels, a mixture of ten narrow experts, a few epochs."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from moe_dist.job import Job, parse_job
from moe_dist.methods.baselines.sparse_moe import SparseMoeConfig
from moe_dist.terminal import Show

NARROW = {"conv1": 2, "conv2": 4, "fc1": 8, "fc2": 8, "learning_rate": 0.003, "batch_size": 32}
GATE = {
    "filters": [4, 8],
    "hidden": [16],
    "dropout": 0.0,
    "optimiser": {"kind": "adam", "learning_rate": 0.003},
}


def traditional(**changes: Any) -> Job:
    """A traditional mixture: 300 images, 3 epochs of 6 steps; `changes` are fields of the job or of its method."""
    method: dict[str, Any] = {"name": "traditional_moe", "experts": NARROW, "gate": GATE, "epochs": 3, "batch_size": 48}
    method["augment"] = {"shift": 0.1, "rotate": 10}
    of_method = ("epochs", "gate", "experts", "batch_size", "top_k", "clip_norm")
    method |= {key: changes.pop(key) for key in list(changes) if key in of_method}
    content: dict[str, Any] = {
        "name": "small",
        "kind": "train",
        "data": {"dataset": "digits", "image_size": 16, "max_train_images": 300, "max_test_images": 60},
        "method": method,
    }
    return parse_job(content | changes, "small.yaml")


def sparse(**changes: Any) -> Job:
    """A sparse mixture of 4 experts on a 4x4 map: 300 images, 4 epochs of 6 steps; `changes` as of `traditional`."""
    method: dict[str, Any] = {"name": "sparse_moe", "trunk": [4, 8], "experts": 4, "hidden": 8, "batch_size": 48}
    method |= {"epochs": 4, "optimiser": {"kind": "adam", "learning_rate": 0.01}}
    method |= {key: changes.pop(key) for key in list(changes) if key in SparseMoeConfig.model_fields}
    data = {"dataset": "digits", "image_size": 16, "max_train_images": 300, "max_test_images": 60}
    content: dict[str, Any] = {"name": "small-sparse", "kind": "train", "data": data, "method": method}
    return parse_job(content | changes, "small-sparse.yaml")


def dfcp(**changes: Any) -> Job:
    """DFCP-MoE with its whole pipeline; labels are plenty, so that few epochs leave a cluster for every class."""
    moves = {"shift": 0.1, "rotate": 10}
    method: dict[str, Any] = {
        "name": "dfcp",
        "trusted": {"fraction": 0.4},
        "features": {"backbone": "siamese"},
        "clusters": {"count": 30, "restarts": 1},
        "pseudo_labels": {"siamese": {"channels": [8, 16], "dimensions": 16, "epochs": 25}, "augment": moves},
        "experts": NARROW,
        "alone": {"epochs": 2, "augment": moves},
        "gate": GATE,
        "joint": {"epochs": 2, "batch_size": 48, "augment": moves},
    }
    content: dict[str, Any] = {
        "name": "small-dfcp",
        "kind": "train",
        "data": {"dataset": "digits", "image_size": 16, "max_train_images": 700, "max_test_images": 60},
        "method": method,
    }
    return parse_job(content | changes, "small-dfcp.yaml")


def quiet() -> Show:
    """Progress for nobody."""
    return Show(Console(quiet=True))
