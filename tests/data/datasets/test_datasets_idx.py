"""MNIST and its like: idx files byte by byte, and USPS's HDF5."""

from __future__ import annotations

import gzip
import pickle
import shutil
import struct
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_dist.data.datasets.catalog import dataset
from moe_dist.data.datasets.idx import parse_idx
from moe_dist.data.image.decode import decode
from moe_dist.errors import UserError

MNIST, FASHION, USPS = dataset("mnist"), dataset("fashion_mnist"), dataset("usps")
RANDOM = np.random.default_rng(11)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(root: Path, packed: bool = True) -> dict[str, np.ndarray]:
    """Twenty training and ten test images, 6 x 5 pixels, labelled 0 to 9 in turn; returns the images."""
    root.mkdir(parents=True, exist_ok=True)
    images = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        images[prefix] = RANDOM.integers(0, 256, (count, 6, 5), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in ((f"{prefix}-images-idx3-ubyte", images[prefix]), (f"{prefix}-labels-idx1-ubyte", labels)):
            path = root / (f"{name}.gz" if packed else name)
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    return images


@pytest.mark.parametrize("packed", [False, True])
def test_images_and_labels_are_those_of_the_files(tmp_path: Path, packed: bool):
    images = write_idx(tmp_path / "MNIST/raw", packed)
    contents = MNIST.open(tmp_path)
    assert contents.counts == {"train": 20, "test": 10}
    assert contents.class_names == tuple("0123456789")
    sample = pickle.loads(pickle.dumps(contents)).sample("test", 7)
    assert (sample.key, sample.label, sample.extension) == ("00007/000007", 7, "png")
    assert np.array_equal(decode(sample.image), np.repeat(images["t10k"][7][..., None], 3, axis=2))


def test_a_plain_file_goes_before_its_gz(tmp_path: Path):
    write_idx(tmp_path)
    images = write_idx(tmp_path, packed=False)
    assert np.array_equal(decode(MNIST.open(tmp_path).sample("train", 3).image)[..., 0], images["train"][3])


@pytest.mark.parametrize("packed", [False, True])
def test_names_with_a_dot_are_read(tmp_path: Path, packed: bool):
    """As many copies have them: train-images.idx3-ubyte."""
    images = write_idx(tmp_path, packed)
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert np.array_equal(decode(MNIST.open(tmp_path).sample("train", 3).image)[..., 0], images["train"][3])


def test_a_copy_that_holds_each_file_twice_is_read(tmp_path: Path):
    """Kaggle's: train-images.idx3-ubyte, and the same as train-images-idx3-ubyte/train-images-idx3-ubyte."""
    images = write_idx(tmp_path, packed=False)
    for path in list(tmp_path.iterdir()):
        data = path.read_bytes()
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
        path.mkdir()
        (path / path.name).write_bytes(data)
    assert np.array_equal(decode(MNIST.open(tmp_path).sample("test", 3).image)[..., 0], images["t10k"][3])


def test_a_zip_of_the_files_is_read(tmp_path: Path):
    images = write_idx(tmp_path / "files")
    path = shutil.make_archive(str(tmp_path / "archive"), "zip", tmp_path / "files")
    contents = pickle.loads(pickle.dumps(MNIST.open(Path(path))))
    assert np.array_equal(decode(contents.sample("train", 3).image)[..., 0], images["train"][3])


def test_fashion_and_usps_are_read_from_the_same_files(tmp_path: Path):
    write_idx(tmp_path)
    assert FASHION.open(tmp_path).class_names[9] == "ankle boot"
    assert USPS.open(tmp_path).counts == {"train": 20, "test": 10}


def test_a_missing_file_and_two_of_one_are_named(tmp_path: Path):
    write_idx(tmp_path / "MNIST")
    write_idx(tmp_path / "FashionMNIST")
    with pytest.raises(UserError, match=r"FashionMNIST/train-images.* and MNIST/train-images.*set data.source to one"):
        MNIST.open(tmp_path)
    (tmp_path / "MNIST/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=r"no t10k-labels-idx1-ubyte or t10k-labels-idx1-ubyte.gz"):
        MNIST.open(tmp_path / "MNIST")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("train-labels-idx1-ubyte", idx(np.zeros(19, np.uint8)), "19 labels for 20 images"),
        ("train-labels-idx1-ubyte", idx(np.arange(20, dtype=np.uint8)), "image 10: label 10 is outside 0 to 9"),
        ("train-labels-idx1-ubyte", idx(np.zeros((20, 1), np.uint8)), "has 2 dimensions, expected 1"),
        ("t10k-images-idx3-ubyte", b"<html>", "not an idx file"),
        ("t10k-images-idx3-ubyte", b"\0\0\x0d\x03" + bytes(12), r"type 0xd, expected 0x8 \(uint8\)"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03\0\0", "cut short in its header"),
        ("t10k-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "has 0 bytes of content where 4294967295 x"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, data: bytes, reason: str):
    write_idx(tmp_path, packed=False)
    (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=rf"{name}: .*{reason}"):
        MNIST.open(tmp_path)


def test_a_gz_cut_short_is_named(tmp_path: Path):
    write_idx(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    for data in (path.read_bytes()[:-20], b"not gzip", path.read_bytes()[:30] + b"xxxx" + path.read_bytes()[34:]):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz: .*download it again"):
            MNIST.open(tmp_path)


@given(st.binary(max_size=64) | st.binary(max_size=40).map(lambda tail: b"\0\0\x08\x02" + tail))
def test_any_bytes_are_an_array_or_refused(data: bytes):
    try:
        array = parse_idx(data)
    except ValueError:
        return
    assert idx(array) == data


def write_usps(path: Path, **changes: np.ndarray) -> dict[str, np.ndarray]:
    """usps.h5 as published: grey levels [N, 256] float32 in [0, 1] and int64 labels."""
    arrays = {
        "train/data": RANDOM.random((20, 256), dtype=np.float32),
        "train/target": np.arange(20) % 10,
        "test/data": RANDOM.random((10, 256), dtype=np.float32),
        "test/target": np.arange(10),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return arrays


@pytest.mark.parametrize("named", ["folder", "file"])
def test_usps_hdf5_is_read(tmp_path: Path, named: str):
    arrays = write_usps(tmp_path / "usps.h5")
    contents = USPS.open(tmp_path if named == "folder" else tmp_path / "usps.h5")
    assert contents.counts == {"train": 20, "test": 10}
    sample = pickle.loads(pickle.dumps(contents)).sample("train", 13)
    assert sample.label == 3
    grey = np.round(arrays["train/data"][13] * 255).reshape(16, 16)
    assert np.array_equal(decode(sample.image)[..., 0], grey)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("test/data", np.full((10, 256), 2.0), "test/data: a grey level is outside 0 to 1"),
        ("test/data", np.full((10, 256), np.nan), "test/data: a grey level is outside 0 to 1"),
        ("test/data", np.zeros((10, 255)), r"test/data: expected N x 256 grey levels, got float64 \[10, 255\]"),
        ("test/data", np.zeros((10, 256), np.uint8), "test/data: expected N x 256 grey levels, got uint8"),
        ("train/target", np.arange(1, 21), "train/target: image 9: label 10 is outside 0 to 9"),
        ("train/target", np.arange(19) % 10, "train/target: 19 labels for 20 images"),
        ("train/target", np.zeros(20), "train/target: expected N whole numbers, got float64"),
    ],
)
def test_usps_hdf5_that_does_not_fit_is_named(tmp_path: Path, name: str, array: np.ndarray, reason: str):
    write_usps(tmp_path / "usps.h5", **{name: array})
    with pytest.raises(UserError, match=reason):
        USPS.open(tmp_path)


def test_what_is_no_usps_hdf5_is_refused(tmp_path: Path):
    (tmp_path / "usps.h5").write_bytes(b"not hdf5")
    with pytest.raises(UserError, match=r"usps.h5: not a usps.h5 \(train and test.*or damaged"):
        USPS.open(tmp_path)
    with h5py.File(tmp_path / "usps.h5", "w") as file:
        file["train"] = np.zeros(3)
    with pytest.raises(UserError, match="or damaged"):
        USPS.open(tmp_path)


def test_hdf5_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_usps(tmp_path / "usps.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py; install moe-dist\[usps\]"):
        USPS.open(tmp_path)


@pytest.mark.data
def test_mnist_as_published(shared_data: Path):
    contents = MNIST.open(shared_data / "mnist")
    assert contents.counts == MNIST.expected == {"train": 60_000, "test": 10_000}
    train = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    test = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(contents.labels("train")).tolist() == train
    assert np.bincount(contents.labels("test")).tolist() == test
    assert contents.labels("train")[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert decode(contents.sample("test", 0).image).shape == (28, 28, 3)
