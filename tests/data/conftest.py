"""Small datasets as fixtures for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_image_folder

from moe_dist.data.shards.build.build import build_shards


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 3 classes, 8 training and 3 test pictures each, 12 x 10 pixels."""
    return write_image_folder(tmp_path / "pictures")


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The shards of `image_folder`: train in three shards of 10, 10 and 4 samples."""
    build_shards("image_folder", image_folder, tmp_path / "shards", samples_per_shard=10)
    return tmp_path / "shards"
