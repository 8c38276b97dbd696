"""CIFAR in its published pickles: read to the pixel, and never a call that a pickle asks for."""

from __future__ import annotations

import gzip
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import python2_pickle
from hypothesis import given
from hypothesis import strategies as st
from pictures import write_image_folder

from moe_dist.data.datasets.catalog import dataset, open_contents
from moe_dist.data.datasets.safe_pickle import load_arrays
from moe_dist.data.image.decode import decode
from moe_dist.data.longtail import LongTail
from moe_dist.errors import UserError

RANDOM = np.random.default_rng(5)
CIFAR10, CIFAR100 = dataset("cifar10"), dataset("cifar100")


def batch(images: int, labels: str, classes: int) -> dict[str, Any]:
    return {
        "batch_label": "training batch 1 of 5",
        labels: [number % classes for number in range(images)],
        "data": RANDOM.integers(0, 256, (images, 3072), dtype=np.uint8),
        "filenames": [f"leptodactylus_s_{number:06d}.png" for number in range(images)],
    }


def write_cifar10(root: Path) -> dict[str, dict[str, Any]]:
    """cifar-10-batches-py under `root`: five batches of 20 images and a test batch of 10; returns what they hold."""
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    batches = {name: batch(10 if name == "test_batch" else 20, "labels", 10) for name in names}
    meta = {"num_cases_per_batch": 20, "label_names": [f"name {label}" for label in range(10)], "num_vis": 3072}
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name, content in {**batches, "batches.meta": meta}.items():
        (folder / name).write_bytes(python2_pickle.dumps(content))
    (folder / "readme.html").write_text("<meta>")
    return batches


def write_cifar100(root: Path) -> dict[str, dict[str, Any]]:
    """cifar-100-python under `root`: 200 training and 100 test images, with coarse labels beside the fine ones."""
    splits = {name: batch(images, "fine_labels", 100) for name, images in (("train", 200), ("test", 100))}
    names = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": [f"c {n}" for n in range(20)]}
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, content in {**splits, "meta": names}.items():
        coarse = {"coarse_labels": [0] * len(content["filenames"])} if name != "meta" else {}
        (folder / name).write_bytes(python2_pickle.dumps({**content, **coarse}))
    return splits


def as_tar(root: Path, mode: str) -> Path:
    path = root.with_suffix(".tar.gz" if mode == "w:gz" else ".tar")
    with tarfile.open(path, mode) as tar:
        tar.add(root, arcname=".")
    return path


def test_a_row_is_a_red_a_green_and_a_blue_plane(tmp_path: Path):
    batches = write_cifar10(tmp_path)
    contents = CIFAR10.open(tmp_path)
    assert contents.counts == {"train": 100, "test": 10}
    assert contents.class_names[3] == "name 3"
    row = batches["data_batch_2"]["data"][7]
    pixels = decode(contents.sample("train", 27).image)
    for y, x in ((0, 0), (0, 31), (31, 0), (17, 5)):
        assert pixels[y, x].tolist() == [row[32 * y + x], row[1024 + 32 * y + x], row[2048 + 32 * y + x]]
    assert contents.sample("train", 27).key == "00007/000027"
    assert contents.labels("train").tolist() == list(range(10)) * 10


def test_cifar_100_has_its_fine_labels(tmp_path: Path):
    write_cifar100(tmp_path)
    contents = CIFAR100.open(tmp_path / "cifar-100-python")
    assert contents.counts == {"train": 200, "test": 100}
    assert contents.class_names == tuple(f"fine {label}" for label in range(100))
    assert contents.labels("test").tolist() == list(range(100))


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_is_read_as_its_folder(tmp_path: Path, mode: str):
    write_cifar10(tmp_path / "cifar")
    folder, archive = CIFAR10.open(tmp_path / "cifar"), CIFAR10.open(as_tar(tmp_path / "cifar", mode))
    for split, count in folder.counts.items():
        for number in range(count):
            one, other = folder.sample(split, number), archive.sample(split, number)
            assert (one.key, one.label, one.image) == (other.key, other.label, other.image)


def test_pickled_contents_leave_the_pixels_behind_and_read_them_again(tmp_path: Path):
    write_cifar10(tmp_path)
    contents = open_contents("cifar10", tmp_path, LongTail(5, "random", 3))
    data = pickle.dumps(contents)
    assert len(data) < 3072 * 10
    copy = pickle.loads(data)
    assert [copy.sample("train", n) for n in range(copy.counts["train"])] == [
        contents.sample("train", n) for n in range(contents.counts["train"])
    ]


def test_class_folders_are_read_too(tmp_path: Path):
    write_image_folder(tmp_path, classes=[f"{label:03d}_name" for label in range(10)], train=2, test=1)
    assert CIFAR10.open(tmp_path).counts == {"train": 20, "test": 10}
    assert CIFAR10.open(as_tar(tmp_path, "w:gz")).counts == {"train": 20, "test": 10}
    with pytest.raises(UserError, match="cifar100 has 100 classes, got 10"):
        CIFAR100.open(tmp_path)


def test_the_pickles_are_in_a_shuffled_order_and_class_folders_are_not(tmp_path: Path):
    """auto keeps the pickles' first images of a class, and draws those of a folder."""
    write_cifar10(tmp_path / "pickles")
    pickles = open_contents("cifar10", tmp_path / "pickles", LongTail(2, "auto"))
    assert pickles.shuffled and pickles.counts["train"] == sum([10, 9, 8, 7, 7, 6, 6, 5, 5, 5])
    whole = CIFAR10.open(tmp_path / "pickles")
    of_the_last = [pickles.sample("train", number).key for number in np.flatnonzero(pickles.labels("train") == 9)]
    assert of_the_last == [whole.sample("train", number).key for number in (9, 19, 29, 39, 49)]
    write_image_folder(tmp_path / "folders", classes=[f"c{label}" for label in range(10)], train=20)
    folders = open_contents("cifar10", tmp_path / "folders", LongTail(2, "auto"))
    assert not folders.shuffled
    kept = [folders.sample("train", number).key for number in np.flatnonzero(folders.labels("train") == 9)]
    assert len(kept) == 10 and kept != [f"00009/{number:06d}_{number:03d}" for number in range(10)]


def test_a_missing_batch_is_named(tmp_path: Path):
    write_cifar10(tmp_path)
    (tmp_path / "cifar-10-batches-py/data_batch_4").unlink()
    with pytest.raises(UserError, match="cifar-10-batches-py/data_batch_4 is missing"):
        CIFAR10.open(tmp_path)


def test_the_other_cifar_is_no_class_folders(tmp_path: Path):
    write_cifar10(tmp_path)
    with pytest.raises(UserError, match=r"no train and test folder.*found cifar-10-batches-py"):
        CIFAR100.open(tmp_path)
    with pytest.raises(UserError, match="the archive holds no cifar-100-python"):
        CIFAR100.open(as_tar(tmp_path, "w:gz"))


def test_a_damaged_archive_is_refused(tmp_path: Path):
    write_cifar10(tmp_path / "cifar")
    path = as_tar(tmp_path / "cifar", "w:gz")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"not a compressed tar, or damaged|is missing"):
        CIFAR10.open(path)
    path.write_bytes(gzip.compress(b"no tar at all"))
    with pytest.raises(UserError, match="not a compressed tar, or damaged"):
        CIFAR10.open(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": [0] * 19}, "`labels` is not a list of 20 labels"),
        ({"labels": [*range(10), *range(9), 10]}, "data_batch_3: image 19: label 10 is outside 0 to 9"),
        ({"labels": ["cat"] * 20}, "image 0: label 'cat' is outside"),
        ({"labels": [-1] * 20}, "image 0: label -1 is outside"),
        ({"data": np.zeros((20, 3071), np.uint8)}, "`data` is not an array of N x 3072 bytes"),
        ({"data": np.zeros((20, 3072), np.int64)}, r"an array of b'i8' where uint8 was expected"),
        ({"data": "pixels"}, "`data` is not an array"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, Any], reason: str):
    batches = write_cifar10(tmp_path)
    content = {**batches["data_batch_3"], **change}
    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(python2_pickle.dumps(content))
    with pytest.raises(UserError, match=reason):
        CIFAR10.open(tmp_path)


class Call:
    """Pickles as a call of `function`, which unpickling would make."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("nested", [False, True])
def test_a_hostile_pickle_is_refused_and_calls_nothing(tmp_path: Path, protocol: int, nested: bool):
    write_cifar10(tmp_path)
    call = Call(os.system, f"touch {tmp_path}/called")
    content: Any = {"data": [{"deep": (call,)}], "labels": []} if nested else call
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(UserError, match=r"test_batch: not a pickle of plain arrays.*would call (posix|nt)\.system"):
        CIFAR10.open(tmp_path)
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nscalar\n(tR.",
        b"(S'echo'\nios\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x04\x8c\x05numpy\x8c\x0dndarray.dumps\x93.",
        b"\x80\x02\x82\x01.",
        b"P1\n.",
        b"Nr\xff\xff\xff\x7f.",
        b"\x80\x05\x96\xff\xff\xff\xff\x0f\x00\x00\x00.",
    ],
)
def test_every_way_of_naming_is_refused(data: bytes):
    with pytest.raises(ValueError, match="not a pickle of plain arrays"):
        load_arrays(data)


def test_a_hostile_state_leaves_the_reader_as_it_was():
    """A pickle may set attributes on what it names; the next file must not feel it."""
    good = python2_pickle.dumps({"data": np.arange(6, dtype=np.uint8).reshape(2, 3)})
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"c_codecs\nencode\n"):
        for state in (b"}S'array'\nI1\ns", b"(N}S'__setstate__'\nI1\nst", b"(N}S'__init__'\nI1\nst"):
            with pytest.raises(ValueError, match="not a pickle of plain arrays"):
                load_arrays(name + state + b"b.")
    assert load_arrays(good)["data"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_files_saved_again_by_python_3_are_read(protocol: int):
    pixels = RANDOM.integers(0, 256, (4, 5), dtype=np.uint8)
    for array in (pixels, np.asfortranarray(pixels)):
        content = load_arrays(pickle.dumps({b"data": array, "labels": [1, 2], "names": [b"a", "b"]}, protocol))
        assert np.array_equal(content["data"], pixels)
        assert (content["labels"], content["names"]) == ([1, 2], ["a", "b"])


@given(st.integers(0, 400), st.binary(min_size=1, max_size=8))
def test_a_damaged_pickle_is_refused_or_read(place: int, noise: bytes):
    whole = python2_pickle.dumps({"data": np.zeros((3, 4), np.uint8), "labels": [0, 1, 2], "name": "batch"})
    damaged = whole[:place] + noise + whole[place + len(noise) :]
    try:
        content = load_arrays(damaged)
    except ValueError:
        return
    plain = (np.ndarray, list, str, int, float, dict, tuple, type(None))
    assert all(isinstance(value, plain) for value in content.values())
