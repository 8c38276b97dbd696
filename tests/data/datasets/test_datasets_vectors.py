"""Tables, arrays and texts as datasets of vectors: read, refused, packed into shards and streamed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from moe_dist.data.datasets.catalog import open_contents
from moe_dist.data.image.vectors import decode_vector, encode_vector
from moe_dist.data.opened.job_shards import ensure_shards
from moe_dist.data.opened.opened import open_data
from moe_dist.data.shards.inspect.check import check_shards
from moe_dist.data.shards.inspect.stats import shard_stats
from moe_dist.data.stream.stream import evaluation_batches
from moe_dist.errors import UserError
from moe_dist.settings.data import DataConfig

VALUES = np.arange(24, dtype=np.float64).reshape(8, 3) / 7
NAMES = np.array(["b", "a", "b", "a", "a", "b", "a", "b"])


def vectors_of(source: Path, split: str = "train") -> np.ndarray:
    contents = open_contents("texts" if source.is_dir() else "vectors", source)
    return np.stack([decode_vector(contents.sample(split, row).image) for row in range(contents.counts[split])])


def table(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_table_is_read_with_its_labels(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", "height,label,width", "1,oak,2.5", "3,10,-1e3", "5,9,0")
    contents = open_contents("vectors", source)
    assert contents.class_names == ("9", "10", "oak")
    assert contents.labels("train").tolist() == contents.labels("test").tolist() == [2, 1, 0]
    assert vectors_of(source).tolist() == [[1, 2.5], [3, -1000], [5, 0]]


def test_a_table_without_labels_has_one_class(tmp_path: Path) -> None:
    contents = open_contents("vectors", table(tmp_path / "t.csv", "x,y", "1,2", "3,4"))
    assert contents.class_names == ("unlabelled",) and contents.labels("train").tolist() == [0, 0]


def test_arrays_may_bring_a_test_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=VALUES, y=NAMES, X_test=VALUES[:2], y_test=NAMES[:2])
    contents = open_contents("vectors", tmp_path / "a.npz")
    assert contents.counts == {"train": 8, "test": 2} and contents.labels("test").tolist() == [1, 0]
    np.save(tmp_path / "a.npy", VALUES)
    np.testing.assert_allclose(vectors_of(tmp_path / "a.npy"), VALUES, rtol=1e-6)


def test_contents_that_were_sent_read_their_vectors_again(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=VALUES, y=NAMES)
    sent = pickle.dumps(open_contents("vectors", tmp_path / "a.npz"))
    assert len(sent) < 3000
    np.testing.assert_allclose(decode_vector(pickle.loads(sent).sample("train", 3).image), VALUES[3], rtol=1e-6)


def test_texts_become_tf_idf(tmp_path: Path) -> None:
    for name, text in {"tea/1": "black tea", "tea/2": "green tea", "wine/1.txt": "red wine wine"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    contents = open_contents("texts", tmp_path)
    assert contents.class_names == ("tea", "wine") and contents.labels("train").tolist() == [0, 0, 1]
    found = vectors_of(tmp_path)
    words = ["black", "green", "red", "tea", "wine"]
    # scikit-learn's idf of a word in n of 3 texts: ln(4 / (1 + n)) + 1; a text's numbers have length 1.
    idf = {word: np.log(4 / (1 + count)) + 1 for word, count in zip(words, (1, 1, 1, 2, 1))}
    wine = np.array([0, 0, idf["red"], 0, 2 * idf["wine"]])
    np.testing.assert_allclose(found[2], wine / np.linalg.norm(wine), rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["x,y", "1,nan"], r"row 1, column 2: nan is not a finite number"),
        (["x,y", "1,2", "1,inf"], r"row 2, column 2: inf is not a finite number"),
        (["x,y", "1,red"], r"row 1, column y: 'red' is not a number"),
        (["x,y", "1"], r"row 1 has 1 fields, the heading 2"),
        (["x,y"], r"no rows below the heading"),
    ],
)
def test_bad_tables_are_refused(rows: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        open_contents("vectors", table(tmp_path / "t.csv", *rows))


def test_bad_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", X=np.array([{}, 1], dtype=object))
    for name in ("objects.npy", "objects.npz"):
        with pytest.raises(UserError, match="without unpickling"):
            open_contents("vectors", tmp_path / name)
    np.savez(tmp_path / "short.npz", X=VALUES, y=NAMES[:3])
    with pytest.raises(UserError, match="expected 8 whole numbers or names"):
        open_contents("vectors", tmp_path / "short.npz")
    np.savez(tmp_path / "other.npz", Z=VALUES)
    with pytest.raises(UserError, match="no array X"):
        open_contents("vectors", tmp_path / "other.npz")
    np.save(tmp_path / "cube.npy", np.zeros((2, 2, 2)))
    with pytest.raises(UserError, match=r"expected numbers in rows and columns, got float64 \[2, 2, 2\]"):
        open_contents("vectors", tmp_path / "cube.npy")


def test_bytes_that_are_no_vector_are_refused() -> None:
    assert decode_vector(encode_vector(np.array([1.5, 2]))).tolist() == [1.5, 2]
    for data in (b"", b"\x93NUMPY", encode_vector(np.array([1.0, np.nan])), encode_vector(np.zeros(3))[:-1]):
        with pytest.raises(ValueError, match=r"vector"):
            decode_vector(data)


def test_vectors_go_through_shards_and_stream(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=VALUES, y=NAMES)
    config = DataConfig(dataset="vectors", source=tmp_path / "a.npz", val_fraction=0)
    place = ensure_shards(config, tmp_path / "cache")
    data = open_data(config, 0, tmp_path / "cache", place)
    assert data.info.vector_size == 3 and data.info.train_images == 8
    images = pickle.loads(pickle.dumps(data.train.images))
    (batch,) = evaluation_batches(images, data.train_samples, data.train.labels, config, batch_size=8)
    rows = sorted(zip(batch.images.tolist(), batch.labels.tolist()))
    expected = sorted(zip(VALUES.astype(np.float32).tolist(), (NAMES == "b").astype(int).tolist()))
    assert rows == expected
    assert shard_stats(place)[0].sides.widths == (3, 3, 3)
    assert check_shards(place) == []


def test_a_table_as_spreadsheets_save_it_is_read_or_refused(tmp_path: Path) -> None:
    """UTF-16, and `Label` as a heading; semicolons and a column of row numbers would be taken for something else."""
    rows = ["a,b,Label", "1,2,3", "4,5,6"]
    (tmp_path / "t.csv").write_text("\r\n".join(rows), encoding="utf-16")
    assert open_contents("vectors", tmp_path / "t.csv").class_names == ("3", "6")
    assert vectors_of(tmp_path / "t.csv").tolist() == [[1, 2], [4, 5]]
    for text, words in (
        ("a;b;label\n1,5;2,5;x\n", "';' between fields; save it with commas there"),
        (",a,b\n0,1,2\n", "column 1 has no name; where it numbers the rows"),
        ("a,b,\n1,2,\n", "column 3 has no name"),
        ("a,label,Label\n1,x,y\n", "two columns are called label"),
    ):
        (tmp_path / "t.csv").write_text(text)
        with pytest.raises(UserError, match=words):
            open_contents("vectors", tmp_path / "t.csv")
