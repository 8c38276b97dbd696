"""What can be predicted: images, folders, tars and tables, here or under a URL, and what is said of them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moe_dist.errors import UserError
from moe_dist.use.inputs import Inputs, open_inputs
from moe_dist.use.preprocess import Preprocessing

IMAGES = Preprocessing(8, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
VECTORS = Preprocessing(8, "center", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), vector_size=2)


def opened(*places: Path | str, folder: Path, preprocessing: Preprocessing = IMAGES) -> Inputs:
    return open_inputs(places, preprocessing, ("cat", "dog"), folder)


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    """A folder whose subfolders are the classes, and a file that is no image."""
    for number, name in enumerate(("cat/0.png", "cat/deep/er/1.png", "dog/2.png")):
        path = tmp_path / "animals" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    (tmp_path / "animals" / "notes.txt").write_text("passed over")
    return tmp_path / "animals"


def test_a_folder_under_a_url_is_read_as_the_folder_is(animals: Path, tmp_path: Path) -> None:
    """With all its subfolders and their classes; file:// stands for every store that fsspec knows."""
    here, there = opened(animals, folder=tmp_path), opened(f"file://{animals}", folder=tmp_path)
    assert sorted((item.label, item.read()) for item in there.items) == sorted(
        (item.label, item.read()) for item in here.items
    )
    assert {item.name for item in there.items} == {f"file://{item.name}" for item in here.items}
    assert [item.label for item in here.items] == ["cat", "cat", "dog"]
    assert there.passed_over == here.passed_over == {".txt": 1}


def test_an_image_a_tar_and_a_table_under_a_url_are_fetched(animals: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "animals.tar", "w") as tar:
        tar.add(animals, ".")
    (tmp_path / "fetched").mkdir()
    found = opened(f"file://{tmp_path}/animals.tar", f"file://{animals}/dog/2.png", folder=tmp_path / "fetched")
    assert [item.name for item in found.items] == [
        *(f"file://{tmp_path}/animals.tar/{name}" for name in ("cat/0.png", "cat/deep/er/1.png", "dog/2.png")),
        f"file://{animals}/dog/2.png",
    ]
    assert found.items[3].read() == found.items[2].read() == picture(2)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n3,4\n")
    table = opened(f"file://{tmp_path}/table.csv", folder=tmp_path / "fetched", preprocessing=VECTORS)
    assert [item.name for item in table.items] == [f"file://{tmp_path}/table.csv: row {row}" for row in (1, 2)]
    assert table.items[1].read().tolist() == [3, 4]


def test_what_is_not_under_a_url_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"file://{tmp_path}/none: no images there"):
        opened(f"file://{tmp_path}/none", folder=tmp_path)
    with pytest.raises(UserError, match="nothing://bucket/images: is not the address of a store"):
        opened("nothing://user:secret@bucket/images?key=secret", folder=tmp_path)
    missing = opened(f"file://{tmp_path}/a.png", folder=tmp_path).items[0]
    with pytest.raises(UserError, match=r"a.png: cannot be fetched: there is no such file"):
        missing.read()


def test_subfolders_that_are_no_classes_are_told(animals: Path, tmp_path: Path) -> None:
    """As GTSRB's, which are numbers; one folder alone, or none, says nothing of classes."""
    for name, number in (("cat", "00000"), ("dog", "00001")):
        (animals / name).rename(animals / number)
    (told,) = [notice for notice in opened(animals, folder=tmp_path).notices if "not scored" in notice]
    assert "its subfolders (00000, 00001) are not called as the model's classes (cat, dog)" in told
    assert all(item.label is None for item in opened(animals, folder=tmp_path).items)
    alone = opened(animals / "00000", folder=tmp_path)
    assert not any("subfolders" in notice for notice in alone.notices)
    (animals / "cat").mkdir()
    (animals / "cat" / "3.png").write_bytes(picture(3))
    notices = opened(animals, folder=tmp_path).notices
    assert any("not scored, as images also lie in 00000, 00001, which is no class" in notice for notice in notices)
