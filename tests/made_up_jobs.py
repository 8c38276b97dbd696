"""Jobs of the made-up methods of tests/made_up, which is put where Python finds packages, here and in every process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

PACKAGE = str(Path(__file__).parent / "made_up")
if PACKAGE not in sys.path:
    sys.path.insert(0, PACKAGE)
os.environ["PYTHONPATH"] = os.pathsep.join([PACKAGE, *filter(None, [os.environ.get("PYTHONPATH")])])

from moe_dist.job import Job, parse_job  # noqa: E402

DATA = {"dataset": "digits", "image_size": 16, "max_train_images": 160, "max_test_images": 40}


def made_up(name: str, method: dict[str, Any] | None = None, **changes: Any) -> Job:
    """A job of `made_up_clusters` or `made_up_gates`; `method` changes the method's fields, `changes` the job's."""
    content = {"name": "made-up", "kind": "train", "data": DATA, "method": {"name": name} | (method or {})}
    return parse_job(content | changes, "made-up.yaml")
