"""A dataset of given samples, registered for one test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encode, gradient

from moe_dist.data.datasets.catalog import DATASETS, Dataset
from moe_dist.data.datasets.samples import Sample
from moe_dist.data.shards.build.build import build_shards


class Listed:
    """A dataset of given samples, the same for its training and test split."""

    class_names = ("ant", "bee")
    superclasses = None
    shuffled = False

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples
        self.counts = {"train": len(samples), "test": len(samples)}

    def labels(self, split: str) -> np.ndarray:
        return np.array([sample.label for sample in self.samples])

    def sample(self, split: str, number: int) -> Sample:
        return self.samples[number]


def build_listed(monkeypatch: pytest.MonkeyPatch, out: Path, samples: list[Sample], **options: Any) -> None:
    """Build the shards of `samples` in `out`."""
    listed = Dataset("listed", "", "", "", "", open=lambda source: Listed(samples))
    monkeypatch.setitem(DATASETS, "listed", listed)
    build_shards("listed", None, out, **options)


def picture(shade: int = 0) -> bytes:
    """A PNG of 9 x 8 pixels."""
    return encode(gradient(8, 9, shade), "PNG")
