"""iNaturalist 2018: a tiny tree with the competition's JSON files, or with the text lists."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from pictures import encode, gradient

from moe_dist.data.datasets.catalog import dataset
from moe_dist.errors import UserError

INAT = dataset("inat2018")
INFO = {"info": {"description": "tiny", "year": 2018}, "licenses": [{"id": 1, "name": "CC", "url": ""}]}


def image_path(label: int, image: int) -> str:
    kingdom = ("Plantae", "Aves")[label % 2]
    return f"train_val2018/{kingdom}/{label}/{image:032x}.jpg"


def write_images(root: Path, paths: list[str]) -> None:
    for shade, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encode(gradient(6, 5, shade), "JPEG"))


def competition(first_id: int, labels: list[int]) -> dict[str, Any]:
    """One of the competition's files for images of `labels`, with all its fields."""
    ids = range(first_id, first_id + len(labels))
    return {
        **INFO,
        "images": [
            {
                "id": number,
                "file_name": image_path(label, number),
                "height": 6,
                "width": 5,
                "license": 1,
                "rights_holder": "",
            }
            for number, label in zip(ids, labels)
        ],
        "annotations": [{"id": n, "image_id": n, "category_id": label} for n, label in zip(ids, labels)],
        "categories": [{"id": label, "name": str(label), "supercategory": "Plantae"} for label in range(3)],
    }


def write_inat(root: Path, **changes: Any) -> Path:
    """Train with 3, 1 and 2 images of three species, val with one each; `changes` replace tables of train2018.json."""
    splits = {"train2018.json": competition(10, [0, 2, 1, 0, 2, 0]), "val2018.json": competition(100, [1, 0, 2])}
    for name, content in splits.items():
        write_images(root, [image["file_name"] for image in content["images"]])
        (root / name).write_text(json.dumps({**content, **(changes if name.startswith("train") else {})}))
    return root


def test_the_competitions_files_are_read(tmp_path: Path):
    contents = INAT.open(write_inat(tmp_path))
    assert contents.counts == {"train": 6, "test": 3}
    assert contents.labels("train").tolist() == [0, 2, 1, 0, 2, 0]
    assert contents.labels("test").tolist() == [1, 0, 2]
    assert contents.class_names == ("0", "1", "2")
    sample = contents.sample("train", 3)
    assert sample.image == (tmp_path / image_path(0, 13)).read_bytes()
    assert (sample.key, sample.label) == (f"00000/000001_{13:032x}", 0)
    assert pickle.loads(pickle.dumps(contents)).sample("train", 3) == sample


def test_annotations_need_not_be_in_the_images_order(tmp_path: Path):
    annotations = [{"id": n, "image_id": n, "category_id": label} for n, label in ((12, 1), (15, 0), (11, 2))]
    images = [{"id": number, "file_name": image_path(label, number)} for number, label in ((11, 2), (12, 1), (15, 0))]
    contents = INAT.open(write_inat(tmp_path, annotations=annotations, images=images))
    assert contents.labels("train").tolist() == [1, 0, 2]
    assert [f"{n:032x}" in contents.sample("train", i).key for i, n in enumerate((12, 15, 11))] == [True] * 3


def test_names_come_from_the_released_categories(tmp_path: Path):
    names = ["Abies alba", "Buteo buteo", "Carex nigra"]
    released = [{"id": label, "name": name, "kingdom": "-"} for label, name in reversed(list(enumerate(names)))]
    (write_inat(tmp_path) / "categories.json").write_text(json.dumps(released))
    assert INAT.open(tmp_path).class_names == tuple(names)


def test_without_categories_classes_are_called_after_folders(tmp_path: Path):
    root = write_inat(tmp_path)
    content = json.loads((root / "train2018.json").read_text())
    del content["categories"]
    (root / "train2018.json").write_text(json.dumps(content))
    assert INAT.open(root).class_names == ("0", "1", "2")


def test_text_lists_are_read_too(tmp_path: Path):
    for name, first, labels in (("train", 0, [0, 1, 2, 0]), ("val", 50, [2, 1, 0])):
        paths = [image_path(label, first + number) for number, label in enumerate(labels)]
        write_images(tmp_path, paths)
        lines = [f"{path} {label}" for path, label in zip(paths, labels)]
        (tmp_path / f"iNaturalist18_{name}.txt").write_text("\n".join(lines))
    contents = INAT.open(tmp_path)
    assert contents.counts == {"train": 4, "test": 3}
    assert contents.labels("test").tolist() == [2, 1, 0]


TRAIN = competition(10, [0, 2, 1, 0, 2, 0])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": None}, r"train2018.json: no list `images`"),
        ({"images": []}, r"train2018.json: no list `images`"),
        ({"annotations": {"image_id": 1}}, r"no list `annotations`"),
        ({"images": [7]}, r"images entry 1: expected id \(int\) and file_name \(str\), got 7"),
        ({"images": [*TRAIN["images"], {"id": "16", "file_name": "x"}]}, r"images entry 7: expected id \(int\)"),
        ({"images": TRAIN["images"][:-1]}, r"annotation 6: image_id 15 is not the id of an image"),
        ({"images": [*TRAIN["images"], TRAIN["images"][0]]}, r"images: an id occurs twice"),
        ({"annotations": TRAIN["annotations"][:-1]}, r"image 15 has no annotation"),
        (
            {"annotations": [*TRAIN["annotations"], {"image_id": 10, "category_id": 1}]},
            r"train2018.json annotation 7: .* is listed twice",
        ),
        (
            {"annotations": [*TRAIN["annotations"][:-1], {"image_id": 15, "category_id": 3}]},
            r"train2018.json annotation 6: label 3 is outside 0 to 2",
        ),
        (
            {"annotations": [*TRAIN["annotations"][:-1], {"image_id": 15, "category_id": 10**30}]},
            r"annotations entry 6: expected image_id \(int\) and category_id \(int\)",
        ),
        ({"categories": TRAIN["categories"][1:]}, r"categories: the ids are not 0, 1, 2"),
        ({"categories": [{"id": 0, "name": None}]}, r"categories entry 1: expected id \(int\) and name \(str\)"),
        (
            {"categories": [*TRAIN["categories"], {"id": 3, "name": "absent"}]},
            r"train2018.json: class 3 \(absent\) has no image",
        ),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, changes: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=reason):
        INAT.open(write_inat(tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_what_is_no_json_is_named(tmp_path: Path, text: str):
    (write_inat(tmp_path) / "val2018.json").write_text(text)
    with pytest.raises(UserError, match=r"val2018.json: not JSON, or damaged"):
        INAT.open(tmp_path)


def test_missing_files_are_named(tmp_path: Path):
    root = write_inat(tmp_path)
    (root / image_path(2, 14)).unlink()
    with pytest.raises(UserError, match=rf"annotation 5: no file {image_path(2, 14)} \(1 such images\)"):
        INAT.open(root)
    (root / "val2018.json").unlink()
    with pytest.raises(UserError, match=r"no val2018.json"):
        INAT.open(root)
    (root / "train2018.json").unlink()
    with pytest.raises(UserError, match=r"neither train2018.json nor iNaturalist18_train.txt"):
        INAT.open(root)
