"""A job's shards: built with its long tail, kept under a name that says so, refused where they hold other data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from built_data import built_data
from pictures import write_image_folder

from moe_dist.data.longtail import LongTail
from moe_dist.data.opened.job_shards import ensure_shards, shards_place
from moe_dist.data.opened.opened import open_data, open_shards
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.index import read_index
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig


def config(source: Path, **settings: object) -> DataConfig:
    return DataConfig.model_validate({"dataset": "image_folder", "source": source, "image_size": 8} | settings)


def test_a_long_tail_goes_from_the_job_to_its_shards(image_folder: Path, tmp_path: Path):
    data = config(image_folder, imbalance=4, imbalance_choice="random", imbalance_seed=5, val_fraction=0)
    opened = built_data(data, seed=0, cache=tmp_path / "cache")
    # int(8 * (1 / 4) ** (c / 2)) for c = 0, 1, 2
    assert opened.info.class_counts == (8, 4, 2)
    (folder,) = (tmp_path / "cache/shards").iterdir()
    assert folder.name.startswith("image_folder-lt4-")
    assert read_index(folder / "train").long_tail == LongTail(4, "random", 5)


def test_every_form_of_a_dataset_has_a_place_of_its_own(image_folder: Path, tmp_path: Path):
    forms = [{}, {"imbalance": 4}, {"imbalance": 2}, {"imbalance": 4, "imbalance_choice": "random"}]
    places = {shards_place(config(image_folder, **form), tmp_path) for form in forms}
    assert len(places) == 4
    assert shards_place(config(image_folder), tmp_path).startswith(str(tmp_path / "shards/image_folder-"))


def test_shards_of_another_long_tail_are_refused(image_folder: Path, tmp_path: Path):
    build_shards("image_folder", image_folder, tmp_path / "cut", long_tail=LongTail(4))
    build_shards("image_folder", image_folder, tmp_path / "all")
    for folder, settings, said in [
        ("all", {"imbalance": 4}, "hold the dataset as it is, the job says a long tail of imbalance 4 "),
        ("cut", {}, "hold a long tail of imbalance 4 .*, the job says the dataset as it is"),
        ("cut", {"imbalance": 2}, "imbalance 4 .* imbalance 2 "),
        ("cut", {"imbalance": 4}, r"first images\), the job says .* \(auto: random images by seed 0, or the first of"),
        ("cut", {"imbalance": 4, "imbalance_choice": "random"}, r"first images\), .* \(random images by seed 0"),
    ]:
        with pytest.raises(UserError, match=said):
            built_data(config(image_folder, shards=str(tmp_path / folder), **settings), 0, tmp_path / "cache")
    first = config(image_folder, shards=str(tmp_path / "cut"), imbalance=4, imbalance_choice="first")
    again = built_data(first, 0, tmp_path / "cache")
    assert np.bincount(again.train.labels).tolist() == [8, 4, 2]


def names_by_kind(root: Path) -> Path:
    """Class folders in which the first half by name are of one kind and all others of another."""
    write_image_folder(root, train=40)
    for folder in (root / "train").iterdir():
        for path in folder.iterdir():
            path.rename(path.with_name(f"{'couch' if int(path.stem) < 20 else 'sofa'}_{path.name}"))
    return root


def test_a_folder_in_alphabetical_order_is_drawn_from(tmp_path: Path):
    """The first 10 of 40 by name would all be couches."""
    data = config(names_by_kind(tmp_path / "source"), imbalance=4, imbalance_seed=3, val_fraction=0)
    place = ensure_shards(data, tmp_path / "cache")
    train = open_shards(data, place, tmp_path / "cache")["train"]
    assert np.bincount(train.labels).tolist() == [40, 20, 10]
    kinds = [member.rpartition("/")[2].split("_")[1] for member in map(train.where, np.flatnonzero(train.labels == 2))]
    assert sorted(set(kinds)) == ["couch", "sofa"]
    assert train.long_tail == LongTail(4, "random", 3) and not train.shuffled
    drawn = config(tmp_path / "source", imbalance=4, imbalance_seed=3, imbalance_choice="random", shards=place)
    assert open_shards(drawn, place, tmp_path / "cache")["train"].digest == train.digest


def test_shards_of_a_shuffled_order_serve_auto_and_first(image_folder: Path, tmp_path: Path):
    """As CIFAR's pickles give them; where an index says nothing of the order, auto takes no first images from it."""
    build_shards("image_folder", image_folder, tmp_path / "cut", long_tail=LongTail(4))
    auto, first = config(image_folder, imbalance=4), config(image_folder, imbalance=4, imbalance_choice="first")
    path, place = tmp_path / "cut/train/index.json", str(tmp_path / "cut")
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"shuffled": True}))
    for data in (auto, first):
        assert open_shards(data, place, tmp_path / "cache")["train"].shuffled
    path.write_text(json.dumps({name: value for name, value in content.items() if name != "shuffled"}))
    open_shards(first, place, tmp_path / "cache")
    with pytest.raises(UserError, match=r"\(first images\), the job says"):
        open_shards(auto, place, tmp_path / "cache")


def test_shards_of_another_dataset_are_refused(shards: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"shards of image_folder, the job says data.dataset = digits"):
        built_data(DataConfig(dataset="digits", shards=str(shards)), 0, tmp_path)


def test_a_build_that_was_broken_off_is_not_taken_for_whole(image_folder: Path, tmp_path: Path):
    class Broken(Exception):
        pass

    def stop(split: str, done: int, total: int) -> None:
        if split == "test":
            raise Broken

    data = config(image_folder, shards=str(tmp_path / "out"))
    with pytest.raises(Broken):
        ensure_shards(data, tmp_path / "cache", stop)
    opened = built_data(data, 0, tmp_path / "cache")
    assert len(opened.train.labels) == 24 and len(opened.test.labels) == 9


def test_shards_under_a_url_are_opened_and_not_built(image_folder: Path, shards: Path, tmp_path: Path):
    with pytest.raises(UserError, match="store/nothing: holds no whole shards"):
        ensure_shards(config(image_folder, shards=f"file://{tmp_path}/store/nothing"), tmp_path / "cache")
    data = config(image_folder, shards=f"file://{shards}")
    stored = open_shards(data, ensure_shards(data, tmp_path / "cache"), tmp_path / "cache")["train"]
    local = open_shards(config(image_folder, shards=str(shards)), str(shards), tmp_path / "cache")["train"]
    assert sorted(stored.read(sample) for sample in range(24)) == sorted(local.read(sample) for sample in range(24))


def test_a_rank_walks_no_source_and_says_where_no_shards_are(image_folder: Path, tmp_path: Path):
    """The driver's place is opened whatever became of the source; where it is gone, nothing is built in its stead."""
    data, cache = config(image_folder), tmp_path / "cache"
    place = ensure_shards(data, cache)
    shutil.rmtree(image_folder)
    assert len(open_data(data, 0, cache, place).train.labels) == 24
    shutil.rmtree(place)
    with pytest.raises(UserError, match=rf"{place}: holds no whole shards as \S+ sees it; name a place"):
        open_data(data, 0, cache, place)
    assert not Path(place).exists()
