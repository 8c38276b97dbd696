"""A job's splits: what limits and validation leave of every class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from built_data import built_data
from listed import build_listed, picture

from moe_dist.data.datasets.samples import Sample
from moe_dist.data.opened.opened import OpenedData, OpenedSplit
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig


@pytest.fixture
def one_track(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Shards of 12 ants on their own and of 12 bees of one track, in training and testing."""
    samples = [
        Sample(f"{number:02d}", label, picture(number), "png", group=track)
        for label, track in ((0, -1), (1, 5))
        for number in range(12 * label, 12 * label + 12)
    ]
    build_listed(monkeypatch, tmp_path / "shards", samples)
    return tmp_path / "shards"


def opened(shards: Path, **settings: object) -> OpenedData:
    config = DataConfig.model_validate({"dataset": "listed", "shards": str(shards), "image_size": 8} | settings)
    return built_data(config, 0, shards.parent / "cache")


def counts(split: OpenedSplit, samples: np.ndarray) -> list[int]:
    return np.bincount(split.labels[samples], minlength=2).tolist()


def test_limits_lose_no_class_whose_images_are_one_track(one_track: Path):
    data = opened(one_track, max_train_images=6, max_test_images=8, val_fraction=0)
    assert counts(data.train, data.train_samples) == [3, 12] == list(data.info.class_counts)
    assert counts(data.test, data.test_samples) == [4, 12] and data.untested_classes == []
    assert data.unvalidated_classes == []


def test_a_class_of_one_track_is_named_where_validation_has_none_of_it(one_track: Path):
    data = opened(one_track, val_fraction=0.2)
    assert counts(data.val, data.val_samples)[1] == 0
    assert data.unvalidated_classes == [data.info.class_names[1]]


def test_a_limit_of_a_published_validation_split_loses_no_class(image_folder: Path, tmp_path: Path):
    """Of 3, 3 and 1 validation images a limit of 3 keeps 1, 1 and the only one."""
    for name in ("ant", "bee", "cat"):
        (image_folder / "val" / name).mkdir(parents=True)
        for number in range(1 if name == "cat" else 3):
            (image_folder / "val" / name / f"{number}.png").write_bytes(picture(number))
    config = {"dataset": "image_folder", "source": image_folder, "image_size": 8, "max_test_images": 3}
    data = built_data(DataConfig.model_validate(config), 0, tmp_path / "cache")
    assert np.bincount(data.val.labels[data.val_samples]).tolist() == [1, 1, 1]


def test_a_share_that_sets_no_image_aside_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    samples = [Sample(f"{number}", number // 3, picture(number), "png", group=number // 3) for number in range(6)]
    build_listed(monkeypatch, tmp_path / "shards", samples)
    with pytest.raises(UserError, match=r"data.val_fraction = 0.25 sets none of 6 images aside: .* are of one track"):
        opened(tmp_path / "shards", val_fraction=0.25)
    assert not len(opened(tmp_path / "shards", val_fraction=0).val_samples)


@pytest.mark.parametrize("limits", [{}, {"max_train_images": 6}])
def test_validation_never_takes_all_training_images_of_a_class(one_track: Path, limits: dict[str, int]):
    data = opened(one_track, val_fraction=0.9, **limits)
    ants, bees = counts(data.train, data.train_samples)
    assert ants >= 1 and bees == 12, "a track is not divided, and training comes first"
    assert counts(data.val, data.val_samples) == [(3 if limits else 12) - ants, 0]
