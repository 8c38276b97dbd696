"""What `shards stats` and `shards list` say, on sets whose numbers are known."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, gradient

from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.inspect.inventory import cached_shards
from moe_dist.data.shards.inspect.stats import shard_stats
from moe_dist.errors import UserError
from moe_dist.plots.profile import class_profile, save_class_profile
from moe_dist.plots.style import style


def write_uneven(root: Path, counts: dict[str, int]) -> Path:
    """train/<class>/ with so many pictures, 10 to 12 pixels high and 20 wide, and one test picture each."""
    for split in ("train", "test"):
        for name, count in counts.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count if split == "train" else 1):
                (folder / f"{number}.png").write_bytes(encode(gradient(10 + number % 3, 20, number), "PNG"))
    return root


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    source = write_uneven(tmp_path / "pictures", {"ant": 101, "bee": 100, "cat": 20, "dog": 19})
    build_shards("image_folder", source, tmp_path / "shards")
    return tmp_path / "shards"


def test_the_numbers_of_an_uneven_set(uneven: Path):
    train, test = shard_stats(uneven)
    assert train.counts.tolist() == [101, 100, 20, 19] and test.counts.tolist() == [1, 1, 1, 1]
    assert train.imbalance == pytest.approx(101 / 19) and test.imbalance == 1
    assert train.bytes == (uneven / "train/train-000000.tar").stat().st_size
    assert train.sides.images == 240
    assert train.sides.widths == (20, 20, 20)
    # Heights 10, 11, 12 by turns: 34 + 34 + 7 + 7, 34 + 33 + 7 + 6, 33 + 33 + 6 + 6 images; the median of 240 is 11.
    assert train.sides.heights == (10, 11, 12)
    words = train.in_words()
    assert words["many, medium, few"] == "1, 2, 1" and words["largest, smallest class"] == "101, 19"
    assert test.in_words()["many, medium, few"] == "-"


def test_a_class_that_a_test_split_lacks_is_told_and_leaves_the_imbalance_of_the_others(tmp_path: Path):
    source = write_uneven(tmp_path / "pictures", {"ant": 4, "bee": 2})
    shutil.rmtree(source / "test" / "bee")
    build_shards("image_folder", source, tmp_path / "shards")
    words = shard_stats(tmp_path / "shards")[1].in_words()
    assert words["classes"] == "1 of 2" and words["imbalance factor"] == "1"


def test_a_shard_cut_short_is_named(uneven: Path):
    os.truncate(uneven / "train/train-000000.tar", 20_000)
    with pytest.raises(UserError, match=r"train-000000.tar: byte \d+: .*; `moe-dist shards check` says"):
        shard_stats(uneven)


def test_one_split_can_be_asked_for(uneven: Path):
    (test,) = shard_stats(uneven / "test")
    assert test.name == "test" and len(test.index.rows) == 4


def test_shards_under_a_url_have_the_same_numbers(uneven: Path):
    local, remote = (shard_stats(place)[0] for place in (uneven, f"file://{uneven}"))
    assert local.in_words() == remote.in_words()


def test_the_profile_falls_from_band_to_band():
    counts = np.array([20, 400, 5, 101, 100, 19])
    with style():
        figure = class_profile("a set", counts)
        steps = [patch.get_data() for patch in figure.axes[0].patches]
    assert [step.values.tolist() for step in steps] == [[400, 101], [100, 20], [19, 5]]
    assert [step.edges.tolist() for step in steps] == [[0.5, 1.5, 2.5], [2.5, 3.5, 4.5], [4.5, 5.5, 6.5]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "many (> 100): 2 classes, 501 images",
        "medium: 2 classes, 120 images",
        "few (< 20): 2 classes, 24 images",
    ]


def test_the_picture_is_a_png(tmp_path: Path):
    save_class_profile(tmp_path / "profile.png", "a set", np.array([300, 30, 3]))
    assert (tmp_path / "profile.png").read_bytes().startswith(b"\x89PNG")


def test_the_cache_says_what_is_whole_building_and_damaged(tmp_path: Path):
    source = write_uneven(tmp_path / "pictures", {"ant": 3, "bee": 2})
    shards = tmp_path / "cache/shards"
    for name in ("image_folder-a", "image_folder-b"):
        build_shards("image_folder", source, shards / name)
    (shards / ".digits-c.building/shards").mkdir(parents=True)
    (shards / "image_folder-b/test/test-000000.tar").unlink()
    found = {one.folder.name: one for one in cached_shards(tmp_path / "cache")}
    assert found["digits-c"].state == "building" and found["digits-c"].dataset == "digits"
    assert found["image_folder-a"].state == "whole" and found["image_folder-a"].counts == {"train": 5, "test": 2}
    assert found["image_folder-b"].state.startswith("damaged: ") and "is missing" in found["image_folder-b"].state
    assert cached_shards(tmp_path / "nowhere") == []
