"""Images in two splits are counted, whatever their files are called."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from pictures import write_image_folder

from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.inspect.repeated import repeated_images


def test_images_of_two_splits_are_told(tmp_path: Path):
    source = write_image_folder(tmp_path / "pictures", train=40)
    shutil.copytree(source / "test", source / "val")
    for number in (0, 1):
        shutil.copy(source / f"train/ant/00{number}.png", source / f"test/bee/of_train_{number}.png")
    build_shards("image_folder", source, tmp_path / "shards")
    found = repeated_images(tmp_path / "shards")
    # write_image_folder's shades: a class's 21st training image is its first of the test split, and so on.
    shades = {split: [] for split in ("train", "val")}
    for label in range(3):
        shades["train"] += [40 * label + number for number in range(40)]
        shades["val"] += [40 * label + number + 20 for number in range(3)]
    assert np.isin(shades["val"], shades["train"]).all()
    assert [sentence.partition(",")[0] for sentence in found] == [
        "9 of 9 val images are also train images",
        "11 of 11 test images are also train images",
        "9 of 11 test images are also val images",
    ]


def test_splits_of_different_images_are_not(shards: Path):
    assert repeated_images(shards) == []


def test_vectors_have_one_set_for_both_by_design(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.arange(12.0).reshape(4, 3))
    build_shards("vectors", tmp_path / "a.npy", tmp_path / "shards")
    assert repeated_images(tmp_path / "shards") == []
