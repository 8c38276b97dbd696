"""Datasets published as lists: tiny trees in the public formats of ImageNet-LT, Places-LT and IP102."""

from __future__ import annotations

import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from pictures import encode, gradient

from moe_dist.data.datasets.catalog import dataset
from moe_dist.data.datasets.ip102 import CROPS
from moe_dist.data.shards.build.build import build_shards
from moe_dist.data.shards.index import read_index
from moe_dist.data.shards.shard_set import ShardSet
from moe_dist.errors import UserError

IMAGENET, PLACES, IP102 = dataset("imagenet_lt"), dataset("places_lt"), dataset("ip102")
SYNSETS = ("n01440764", "n01443537", "n01484850")


def write_images(root: Path, lines: list[str]) -> None:
    for shade, line in enumerate(lines):
        path = root / line.split()[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(gradient(6, 5, shade), "JPEG"))


def write_imagenet_lt(root: Path) -> Path:
    """ImageNet's folders with five, three and one training images, and the three lists; one image is in no list."""
    lists = {
        "train": [
            f"train/{synset}/{synset}_{100 + image}.JPEG {label}"
            for label, (synset, images) in enumerate(zip(SYNSETS, (5, 3, 1)))
            for image in range(images)
        ],
        "val": [f"train/{synset}/{synset}_{900 + label}.JPEG {label}" for label, synset in enumerate(SYNSETS)],
        "test": [
            f"val/{synset}/ILSVRC2012_val_{2 * label + image:08d}.JPEG {label}"
            for label, synset in enumerate(SYNSETS)
            for image in range(2)
        ],
    }
    for split, lines in lists.items():
        write_images(root, lines)
        (root / f"ImageNet_LT_{split}.txt").write_text("\n".join(lines) + "\n")
    write_images(root, ["train/n01440764/n01440764_5000.JPEG"])
    return root


def test_imagenet_lt_is_read_as_listed(tmp_path: Path):
    root = write_imagenet_lt(tmp_path / "imagenet")
    contents = IMAGENET.open(root)
    assert contents.counts == {"train": 9, "val": 3, "test": 6}
    assert contents.class_names == SYNSETS
    assert contents.superclasses is None
    assert contents.labels("train").tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 2]
    sample = contents.sample("test", 3)
    assert (sample.key, sample.label, sample.extension) == ("00001/000001_ILSVRC2012_val_00000003", 1, "jpeg")
    assert sample.image == (root / "val/n01443537/ILSVRC2012_val_00000003.JPEG").read_bytes()
    assert pickle.loads(pickle.dumps(contents)).sample("test", 3) == sample


@pytest.mark.parametrize("where", ["beside", "apart"])
def test_lists_and_images_may_lie_in_folders_of_their_own(tmp_path: Path, where: str):
    root = write_imagenet_lt(tmp_path / "data/ILSVRC")
    if where == "apart":
        (tmp_path / "data/lists").mkdir()
        for path in root.glob("*.txt"):
            path.rename(tmp_path / "data/lists" / path.name)
    assert IMAGENET.open(tmp_path).counts == {"train": 9, "val": 3, "test": 6}


def test_a_tar_is_read_as_its_folder(tmp_path: Path):
    root = write_imagenet_lt(tmp_path / "imagenet")
    with tarfile.open(tmp_path / "imagenet.tar", "w") as tar:
        tar.add(root, arcname="imagenet")
    folder, packed = IMAGENET.open(root), IMAGENET.open(tmp_path / "imagenet.tar")
    for number in range(9):
        one, other = folder.sample("train", number), packed.sample("train", number)
        assert (one.key, one.label, one.image) == (other.key, other.label, other.image)


def test_places_lt_is_read_as_listed(tmp_path: Path):
    lists = {
        "train": ["train/airfield/00004851.jpg 0", "train/airfield/00004596.jpg 0", "train/alcove/00003142.jpg 1"],
        "val": ["train/airfield/00000001.jpg 0", "train/alcove/00000001.jpg 1"],
        "test": ["val/airfield/Places365_val_00003597.jpg 0", "val/alcove/Places365_val_00033113.jpg 1"],
    }
    for split, lines in lists.items():
        write_images(tmp_path, lines)
        (tmp_path / f"Places_LT_{split}.txt").write_text("\n".join(lines))
    contents = PLACES.open(tmp_path)
    assert contents.counts == {"train": 3, "val": 2, "test": 2}
    assert contents.class_names == ("airfield", "alcove")


def test_folders_of_one_name_give_numbered_classes(tmp_path: Path):
    lines = ["a/arch/indoor/1.jpg 0", "b/bar/indoor/1.jpg 1"]
    for split in ("train", "val", "test"):
        listed = [f"{split}/{line}" for line in lines]
        write_images(tmp_path, listed)
        (tmp_path / f"Places_LT_{split}.txt").write_text("\n".join(listed))
    assert PLACES.open(tmp_path).class_names == ("class 0", "class 1")


def change_line(path: Path, number: int, line: str) -> None:
    lines = path.read_text().splitlines()
    lines[number - 1 : number] = [line]
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("split", "number", "line", "reason"),
    [
        ("train", 4, "train/n01440764/n01440764_1.JPEG 0", r"train.txt line 4: no file train/n0.*_1.JPEG \(1 such"),
        ("train", 1, "train/n01440764/n01440764_1.JPEG 0", r"train.txt line 1: no file .* in any folder"),
        ("train", 2, "train/n01440764/n01440764_100.JPEG 0", r"train.txt line 2: .*_100.JPEG is listed twice"),
        ("train", 3, "train/n01440764/n01440764_102.JPEG", r"train.txt line 3: not a path and a label"),
        ("train", 3, "train/n01440764/n01440764_102.JPEG cat", r"train.txt line 3: not a path and a label"),
        ("train", 3, "train/n01440764/n01440764_102.JPEG -1", r"train.txt line 3: not a path and a label"),
        ("train", 3, "", r"train.txt line 3: not a path and a label: ''"),
        ("train", 9, "train/n01484850/n01484850_100.JPEG 99999", r"line 9: label 99999, but class 2 has no image"),
        ("test", 5, "val/n01484850/ILSVRC2012_val_00000004.JPEG 3", r"test.txt line 5: label 3 is outside 0 to 2"),
        ("test", 1, "train/n01440764/n01440764_100.JPEG 0", r"is in both ImageNet_LT_train.txt and ImageNet_LT_test"),
        (
            "val",
            1,
            "train/n01440764/n01440764_100.JPEG 0",
            r"_100.JPEG is in both ImageNet_LT_train.txt and .*_val.txt",
        ),
        ("val", 1, "val/n01440764/ILSVRC2012_val_00000000.JPEG 0", r"is in both ImageNet_LT_val.txt and .*_test.txt"),
        ("val", 2, "../secret.JPEG 1", r"val.txt line 2: no file ../secret.JPEG"),
        ("val", 2, "ImageNet_LT_test.txt 1", r"val.txt line 2: ImageNet_LT_test.txt is not a jpg, jpeg, png, ppm file"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, split: str, number: int, line: str, reason: str):
    change_line(write_imagenet_lt(tmp_path) / f"ImageNet_LT_{split}.txt", number, line)
    with pytest.raises(UserError, match=reason):
        IMAGENET.open(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_of_windows_are_read(tmp_path: Path, encoding: str):
    r"""`dir > list.txt` in PowerShell: UTF-16, lines that end in two characters, `\` between folders."""
    for path in write_imagenet_lt(tmp_path).glob("*.txt"):
        text = path.read_text().replace("/", "\\").replace("\n", "\r\n")
        path.write_bytes(text.encode(encoding))
    assert IMAGENET.open(tmp_path).counts == {"train": 9, "val": 3, "test": 6}


def test_a_folder_that_is_linked_under_the_name_a_list_has_is_read(tmp_path: Path):
    root = write_imagenet_lt(tmp_path)
    (root / "train").rename(root / "images")
    (root / "train").symlink_to("images")
    assert IMAGENET.open(tmp_path).counts == {"train": 9, "val": 3, "test": 6}


def test_a_missing_an_empty_and_a_doubled_list_are_named(tmp_path: Path):
    table = write_imagenet_lt(tmp_path) / "ImageNet_LT_val.txt"
    (tmp_path / "train/ImageNet_LT_val.txt").write_text(table.read_text())
    with pytest.raises(UserError, match=r"both ImageNet_LT_val.txt and train/ImageNet_LT_val.txt"):
        IMAGENET.open(tmp_path)
    (tmp_path / "train/ImageNet_LT_val.txt").unlink()
    table.write_text("\n")
    with pytest.raises(UserError, match=r"ImageNet_LT_val.txt is empty"):
        IMAGENET.open(tmp_path)
    table.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"ImageNet_LT_val.txt: not UTF-8 text"):
        IMAGENET.open(tmp_path)
    table.unlink()
    with pytest.raises(UserError, match=r"no ImageNet_LT_val.txt; put"):
        IMAGENET.open(tmp_path)


def test_images_in_two_places_are_refused(tmp_path: Path):
    write_imagenet_lt(tmp_path / "one")
    write_imagenet_lt(tmp_path / "two")
    for path in (tmp_path / "two").glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"line 1: both one/train/.* and two/train/.* are there"):
        IMAGENET.open(tmp_path)


def write_ip102(root: Path, classes: int = 102) -> Path:
    """IP102 as published: an image a class and split, lists of bare names, classes.txt with its tabs and spaces."""
    names = ["alfalfa weevil" if number in (45, 57) else f"pest of {number}" for number in range(1, classes + 1)]
    root.mkdir(parents=True, exist_ok=True)
    (root / "classes.txt").write_text("".join(f"{n:<3d} {name} \t\t\t\n" for n, name in enumerate(names, start=1)))
    for offset, split in ((0, "train"), (1, "val"), (2, "test")):
        lines = [f"{3 * label + offset:05d}.jpg {label}" for label in range(classes)]
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
        write_images(root / "images", lines)
    return root


def test_ip102_is_read_with_its_crops(tmp_path: Path):
    """The paper's eight crops have 14, 13, 9, 8, 13, 16, 19 and 10 classes; class 14 is the last that eats rice."""
    contents = IP102.open(write_ip102(tmp_path / "ip102_v1.1"))
    assert contents.counts == {"train": 102, "val": 102, "test": 102}
    assert contents.class_names[0] == "pest of 1"
    assert (contents.class_names[44], contents.class_names[56]) == ("alfalfa weevil", "alfalfa weevil (57)")
    assert contents.superclasses is not None
    crops, sizes = np.unique(contents.superclasses, return_counts=True)
    expected = {"Rice": 14, "Corn": 13, "Wheat": 9, "Beet": 8, "Alfalfa": 13, "Vitis": 16, "Citrus": 19, "Mango": 10}
    assert dict(zip(crops.tolist(), sizes.tolist())) == expected
    assert (contents.superclasses[13], contents.superclasses[14]) == ("Rice", "Corn")
    assert contents.sample("val", 5).key == "00005/000000_00016"


def test_crops_are_in_the_shards_index(tmp_path: Path):
    """They reach whoever opens the shards; an index with too few of them is refused."""
    root = write_ip102(tmp_path / "source", classes=5)
    build_shards("ip102", root, tmp_path / "plain")
    assert read_index(tmp_path / "plain" / "train").superclasses is None
    assert "superclasses" not in json.loads((tmp_path / "plain" / "train" / "index.json").read_text())
    (root / "superclasses.txt").write_text("1-2 Rice\n3-5 Corn\n")
    build_shards("ip102", root, tmp_path / "with")
    assert ShardSet.open(tmp_path / "with" / "test").superclasses == ("Rice", "Rice", "Corn", "Corn", "Corn")
    path = tmp_path / "with" / "test" / "index.json"
    path.write_text(path.read_text().replace('"Rice",', "", 1))
    with pytest.raises(UserError, match="4 superclasses of 5 classes"):
        read_index(tmp_path / "with" / "test")


def test_crops_of_a_file_go_before_the_papers(tmp_path: Path):
    root = write_ip102(tmp_path, classes=5)
    assert IP102.open(root).superclasses is None
    (root / "superclasses.txt").write_text("1-2 Rice\n3 - 5 Sugar beet\n")
    assert IP102.open(root).superclasses == ("Rice", "Rice", "Sugar beet", "Sugar beet", "Sugar beet")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1-2 Rice\n4-5 Corn\n", r"superclasses.txt line 2: expected `3-LAST name`, LAST at most 5, got '4-5 Corn'"),
        ("1-3 Rice\n2-5 Corn\n", "line 2: expected `4-LAST name`"),  # they overlap
        ("1-6 Rice\n", "line 1: expected `1-LAST name`, LAST at most 5"),
        ("1-2 Rice\n3-2 Corn\n", "line 2: expected `3-LAST name`"),
        ("rice\n", "line 1: expected"),
        ("1-4 Rice\n", "classes 5 to 5 are in no range"),
    ],
)
def test_bad_crops_are_named(tmp_path: Path, text: str, reason: str):
    (write_ip102(tmp_path, classes=5) / "superclasses.txt").write_text(text)
    with pytest.raises(UserError, match=reason):
        IP102.open(tmp_path)


def test_bad_classes_are_named(tmp_path: Path):
    root = write_ip102(tmp_path, classes=5)
    change_line(root / "classes.txt", 3, "4 beetle")
    with pytest.raises(UserError, match=r"classes.txt line 3: expected `3 name`, got '4 beetle'"):
        IP102.open(root)
    write_ip102(root, classes=5)
    (root / "classes.txt").write_text("1 a\n2 b\n")
    with pytest.raises(UserError, match=r"train.txt line 3: label 2 is outside 0 to 1"):
        IP102.open(root)
    (root / "classes.txt").write_text("".join(f"{n} name {n}\n" for n in range(1, 7)))
    with pytest.raises(UserError, match=r"train.txt: class 5 \(name 6\) has no image"):
        IP102.open(root)
    (root / "classes.txt").unlink()
    with pytest.raises(UserError, match=r"no classes.txt"):
        IP102.open(root)


def test_the_papers_crops_cover_all_classes():
    ranges = [line.split()[0].split("-") for line in CROPS.split("\n")[1:-1]]
    covered = [number for first, last in ranges for number in range(int(first), int(last) + 1)]
    assert covered == list(range(1, 103))
