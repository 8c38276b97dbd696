"""What is told of the images that a long tail kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from moe_dist.data.longtail import LongTail
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.inspect.kept import how_images_were_kept


def test_a_draw_is_told_where_it_was_not_asked_for_and_first_images_where_they_may_be_no_draw(
    image_folder: Path, tmp_path: Path
):
    drawn = build_shards("image_folder", image_folder, tmp_path / "a", long_tail=LongTail(4, "auto", 7))["train"]
    (sentence,) = how_images_were_kept(drawn, "auto")
    assert "drawn by imbalance_seed = 7" in sentence
    assert how_images_were_kept(drawn, "random") == []
    first = replace(drawn, long_tail=LongTail(4, "first"))
    (sentence,) = how_images_were_kept(first, "first")
    assert sentence.startswith("imbalance_choice = first") and sentence.endswith("auto draws them")


def test_nothing_is_told_of_a_shuffled_order_or_of_a_whole_dataset(image_folder: Path, tmp_path: Path):
    whole = build_shards("image_folder", image_folder, tmp_path / "whole")["train"]
    assert how_images_were_kept(whole, "auto") == []
    shuffled = replace(whole, long_tail=LongTail(4, "first"), shuffled=True)
    assert how_images_were_kept(shuffled, "auto") == how_images_were_kept(shuffled, "first") == []
