"""Small jobs of multi-scale GMM-MoE: digits at 32 pixels, timm's smallest EfficientNet, two taps of three experts."""

from __future__ import annotations

from typing import Any

from moe_dist.job import Job, parse_job

TAP = {"experts": 3, "dim": 8, "kernel": 3, "temperature": 1.3}
TAPS = [TAP | {"at": "blocks.2"}, TAP | {"at": "blocks.4", "kernel": 1}]
STAGE: dict[str, Any] = {"epochs": 2, "batch_size": 24, "learning_rate": 0.003}
METHOD: dict[str, Any] = {
    "name": "gmm_moe",
    "backbone": "timm/test_efficientnet",
    "weights": None,
    "taps": TAPS,
    "width": 16,
    "anneal_epochs": 2,
    "frozen": STAGE,
    "whole": STAGE | {"epochs": 1},
}
DATA = {"dataset": "digits", "image_size": 32, "max_train_images": 120, "max_test_images": 40}


def job(method: dict[str, Any] | None = None, **changes: Any) -> Job:
    """`method` changes the method's fields, `changes` the job's."""
    content = {"name": "small", "kind": "train", "data": DATA, "method": METHOD | (method or {})}
    return parse_job(content | changes, "small.yaml")
