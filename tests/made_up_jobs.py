"""Jobs of the made-up methods of tests/installed."""

from __future__ import annotations

from typing import Any

from moe_dist.job import Job, parse_job

DATA = {"dataset": "digits", "image_size": 16, "max_train_images": 160, "max_test_images": 40}


def made_up(name: str, method: dict[str, Any] | None = None, **changes: Any) -> Job:
    """A job of `made_up_clusters` or `made_up_gates`; `method` changes the method's fields, `changes` the job's."""
    content = {"name": "made-up", "kind": "train", "data": DATA, "method": {"name": name} | (method or {})}
    return parse_job(content | changes, "made-up.yaml")
