"""Small datasets as fixtures for the tests of the data room."""

from __future__ import annotations

from pathlib import Path

import pytest
from pictures import write_image_folder

from moe_dist.data.shards import build_shards

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The folder of real images; skips where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the real images are absent")
    return SHARED_DATA


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """A folder of 3 classes, 8 training and 3 test pictures each, 12 x 10 pixels."""
    return write_image_folder(tmp_path / "pictures")


@pytest.fixture
def shards(image_folder: Path, tmp_path: Path) -> Path:
    """The shards of `image_folder`: train in three shards of 10, 10 and 4 samples."""
    build_shards("image_folder", image_folder, tmp_path / "shards", samples_per_shard=10)
    return tmp_path / "shards"
