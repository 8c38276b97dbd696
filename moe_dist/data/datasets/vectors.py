"""A user's own vectors: arrays in .npz or .npy, a table in .csv, or the texts of a folder as TF-IDF.

Nothing here has a test split of its own unless an .npz brings one: the samples are then both splits, as a clustering is
scored on what it clustered. Letters: N samples, D numbers of one.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from moe_dist.data.datasets.samples import Sample
from moe_dist.data.datasets.source import open_tree, text_of
from moe_dist.data.image.vectors import VECTOR, encode_vector
from moe_dist.errors import UserError

LABEL = "label"
"""The column of a CSV that is not a number of the sample but its class."""
UNLABELLED = "unlabelled"
WORDS = 2000
"""The most frequent words that a text is described by, as the papers of deep clustering have it."""
Arrays = tuple[np.ndarray, np.ndarray | None]
"""Vectors [N, D] and the names of their classes [N]; None where the samples have no classes."""


class VectorContents:
    """The splits of a source. A pickled object leaves its vectors behind, and gets them again from `read`."""

    superclasses = None
    shuffled = False

    def __init__(self, source: Path, read: Callable[[Path], Mapping[str, Arrays]]) -> None:
        self._source, self._read = source, read
        splits = read(source)
        self._values: dict[str, np.ndarray] = {split: values for split, (values, _) in splits.items()}
        names = [classes for _, classes in splits.values() if classes is not None]
        self.class_names = tuple(sorted({str(name) for classes in names for name in classes}, key=_as_number))
        self.class_names = self.class_names or (UNLABELLED,)
        number = {name: label for label, name in enumerate(self.class_names)}
        self._labels = {
            split: np.zeros(len(values), np.int64)
            if classes is None
            else np.array([number[str(name)] for name in classes], np.int64)
            for split, (values, classes) in splits.items()
        }
        self.counts = {split: len(values) for split, values in self._values.items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_values": {}}

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return self._labels[split]

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`; its key is its number."""
        if not self._values:
            self._values = {name: values for name, (values, _) in self._read(self._source).items()}
        vector = encode_vector(self._values[split][number])
        label = int(self._labels[split][number])
        return Sample(f"{number:08d}", label, vector, VECTOR, origin=f"{self._source}: {split} row {number + 1}")


def open_vectors(source: Path | None) -> VectorContents:
    """The vectors of a .npz, .npy or .csv file. Raises UserError where it is of another form or a number is missing."""
    if source is None:
        raise UserError("dataset vectors needs data.source (--from): a .csv, .npz or .npy file")
    readers = {".csv": _read_csv, ".npz": _read_npz, ".npy": _read_npy}
    if source.suffix.lower() not in readers:
        raise UserError(f"{source}: expected a file called *.csv, *.npz or *.npy")
    if not source.is_file():
        raise UserError(f"{source}: no such file; set data.source (--from) to your table or arrays")
    return VectorContents(source, readers[source.suffix.lower()])


def open_texts(source: Path | None) -> VectorContents:
    """TF-IDF of the texts of a folder or tar of <class>/*. Raises UserError where it has no texts in class folders."""
    if source is None:
        raise UserError("dataset texts needs data.source (--from): a folder or tar of <class>/*, a text a file")
    return VectorContents(source, partial(_read_texts, words=WORDS))


def texts_version() -> str:
    """The version on which the numbers of a text depend."""
    return f"scikit-learn {version('scikit-learn')}"


def require_vectors(values: np.ndarray, where: str) -> np.ndarray:
    """The numbers [N, D] as float32. Raises UserError where they are no such array or one is not finite."""
    if values.ndim != 2 or values.dtype.kind not in "fiub" or not values.size:
        raise UserError(f"{where}: expected numbers in rows and columns, got {values.dtype} {list(values.shape)}")
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    if len(rows := np.argwhere(~np.isfinite(numbers))):
        row, column = rows[0].tolist()
        raise UserError(
            f"{where}: row {row + 1}, column {column + 1}: {values[row, column]} is not a finite number; fill in or "
            f"leave out such rows ({len(np.unique(rows[:, 0]))} in all)"
        )
    return numbers


def _as_number(name: str) -> tuple[bool, int, str]:
    """Sorts names that are whole numbers by their value, before all others."""
    return (not name.isdigit(), int(name) if name.isdigit() else 0, name)


def _both(values: np.ndarray, classes: np.ndarray | None) -> dict[str, Arrays]:
    return {"train": (values, classes), "test": (values, classes)}


def _read_npy(path: Path) -> dict[str, Arrays]:
    return _both(require_vectors(_loaded(path), str(path)), None)


def _loaded(path: Path) -> Any:
    """What an .npy or .npz holds. Raises UserError where it is damaged, or would have to be unpickled."""
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path}: cannot be read without unpickling ({error}); save plain arrays of numbers") from None


def _read_npz(path: Path) -> dict[str, Arrays]:
    """Arrays X [N, D] and, if you like, y [N], X_test and y_test."""
    with _loaded(path) as file:
        try:
            arrays = {name: file[name] for name in file.files}
        except ValueError as error:
            raise UserError(f"{path}: cannot be read without unpickling ({error}); save plain arrays") from None
    if "X" not in arrays:
        raise UserError(f"{path}: no array X; np.savez(path, X=..., y=...) saves one ({', '.join(arrays) or 'empty'})")
    train = _labelled(path, arrays["X"], arrays.get("y"), "X")
    if "X_test" not in arrays:
        return _both(*train)
    test = _labelled(path, arrays["X_test"], arrays.get("y_test"), "X_test")
    if (train[1] is None) != (test[1] is None):
        raise UserError(f"{path}: only one of y and y_test is there; save both or none")
    if train[0].shape[1] != test[0].shape[1]:
        raise UserError(f"{path}: X has {train[0].shape[1]} columns and X_test {test[0].shape[1]}")
    return {"train": train, "test": test}


def _labelled(path: Path, values: np.ndarray, classes: np.ndarray | None, name: str) -> Arrays:
    numbers = require_vectors(values, f"{path}: {name}")
    if classes is not None and (classes.dtype.kind not in "iuU" or classes.shape != (len(numbers),)):
        raise UserError(
            f"{path}: the classes of {name} are {classes.dtype} {list(classes.shape)}, expected {len(numbers)} whole "
            "numbers or names"
        )
    return numbers, classes


def _read_csv(path: Path) -> dict[str, Arrays]:
    """A table with a heading; the column `label`, if there is one, has the classes, all others are numbers."""
    try:
        heading, *rows = [row for row in csv.reader(io.StringIO(text_of(path.read_bytes()), newline="")) if row]
    except (OSError, csv.Error, ValueError) as error:
        raise UserError(f"{path}: not a table of UTF-8 text with a heading and rows ({error})") from None
    heading = [LABEL if name.strip().lower() == LABEL else name for name in heading]
    _require_heading(path, heading)
    if not rows:
        raise UserError(f"{path}: no rows below the heading")
    columns = [number for number, name in enumerate(heading) if name != LABEL]
    values = np.empty((len(rows), len(columns)))
    for number, row in enumerate(rows):
        if len(row) != len(heading):
            raise UserError(f"{path}: row {number + 1} has {len(row)} fields, the heading {len(heading)}")
        for place, column in enumerate(columns):
            try:
                values[number, place] = float(row[column])
            except ValueError:
                raise UserError(
                    f"{path}: row {number + 1}, column {heading[column]}: {row[column]!r} is not a number; encode or "
                    f"leave out such columns (one called {LABEL!r} may hold names of classes)"
                ) from None
    classes = np.array([row[heading.index(LABEL)] for row in rows]) if LABEL in heading else None
    return _both(require_vectors(values, str(path)), classes)


def _require_heading(path: Path, heading: list[str]) -> None:
    """Raise UserError where fields are not between commas, a column has no name, or two have the classes."""
    if len(heading) == 1 and (mark := next((mark for mark in ";\t|" if mark in heading[0]), None)):
        raise UserError(f"{path}: {mark!r} between fields; save it with commas there, and with points in numbers")
    for number, name in enumerate(heading):
        if not name.strip():
            raise UserError(
                f"{path}: column {number + 1} has no name; where it numbers the rows (pandas writes such a column "
                "without index=False) leave it out, else name it"
            )
    if heading.count(LABEL) > 1:
        raise UserError(f"{path}: two columns are called {LABEL}; rename or leave out one")


def _read_texts(source: Path, words: int) -> dict[str, Arrays]:
    from sklearn.feature_extraction.text import TfidfVectorizer  # takes a second to import

    tree = open_tree(source)
    paths = [path for path in tree.files if len(PurePosixPath(path).parts) >= 2]
    if not paths:
        raise UserError(f"{tree.where}: no texts in class folders; expected <class>/*, a text a file")
    texts = [tree.read(path).decode("utf-8", errors="replace") for path in paths]
    try:
        found = TfidfVectorizer(max_features=words, dtype=np.float32).fit_transform(texts)
    except ValueError as error:
        raise UserError(f"{tree.where}: the texts hold no words ({error})") from None
    return _both(found.toarray(), np.array([PurePosixPath(path).parent.name for path in paths]))
