"""The German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012): 43 classes, tracks of up to 30 frames.

Three layouts are read, each perhaps in further folders:
- official: GTSRB/Final_Training/Images/<class>/*.ppm with GT-<class>.csv, GTSRB/Final_Test/Images/*.ppm with
  GT-final_test.csv, fields between semicolons; torchvision's folder has GTSRB/Training/<class>/ instead, the 26,640
  training images of the challenge's first stage;
- repacked: train/<class>/* and test/<class>/* with train.csv and test.csv beside them, fields between commas;
- Kaggle's: the same as Train/<class>/*, Test/*, Train.csv and Test.csv, with the official names of columns.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np

from moe_dist.data.datasets.samples import Sample, is_image, scaled_region
from moe_dist.data.datasets.source import Tree, open_tree, text_of
from moe_dist.data.image.crops import Region
from moe_dist.data.image.decode import image_size
from moe_dist.errors import UserError

CLASS_NAMES = (
    *(f"speed limit {limit}" for limit in (20, 30, 50, 60, 70, 80)),
    "end of speed limit 80",
    "speed limit 100",
    "speed limit 120",
    "no overtaking",
    "no overtaking by lorries",
    "priority at next junction",
    "priority road",
    "give way",
    "stop",
    "no vehicles",
    "no lorries",
    "no entry",
    "danger",
    "bend left",
    "bend right",
    "double bend",
    "uneven road",
    "slippery road",
    "road narrows",
    "roadworks",
    "traffic signals",
    "pedestrians",
    "children",
    "bicycles",
    "snow",
    "wild animals",
    "end of all limits",
    "turn right ahead",
    "turn left ahead",
    "ahead only",
    "straight or right",
    "straight or left",
    "keep right",
    "keep left",
    "roundabout",
    "end of no overtaking",
    "end of no overtaking by lorries",
)
_TRAIN_TABLES = (
    re.compile(r"(?:.*/)?Final_Training/Images/(\d{5})/GT-\1\.csv"),
    re.compile(r"(?:.*/)?Training/(\d{5})/GT-\1\.csv"),
)
"""The official training tables, and those of torchvision, which are read where there are none of the former."""
READING = "tracks end at the last underscore"
"""How the tables are read. It is part of a source's fingerprint: shards of before may hold other tracks."""
_COLUMNS = ("width", "height", "roi_x1", "roi_y1", "roi_x2", "roi_y2", "class_id")
_OFFICIAL_COLUMNS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


@dataclass(frozen=True)
class _Layout:
    """The tables of one layout: the delimiter of fields, the column of the file, and the columns of the numbers."""

    delimiter: str
    file: str
    columns: tuple[str, ...]


_OFFICIAL = _Layout(";", "Filename", _OFFICIAL_COLUMNS)
_REPACKED = {"train.csv": _Layout(",", "path", _COLUMNS), "Train.csv": _Layout(",", "Path", _OFFICIAL_COLUMNS)}
"""By the name of the training table; the test table is called alike."""


@dataclass(frozen=True)
class _Row:
    """A row of a table: a file of the source, and its region of interest in an image of `size` (width, height)."""

    path: str
    label: int
    region: Region
    size: tuple[int, int]
    group: int = -1


class SignContents:
    """The signs: image files with tracks and regions of interest, listed by split."""

    class_names = CLASS_NAMES
    superclasses = None
    shuffled = False

    def __init__(self, tree: Tree, rows: Mapping[str, Sequence[_Row]]) -> None:
        self.counts = {split: len(of_split) for split, of_split in rows.items()}
        self._reader = tree.reader
        self._rows = rows

    def labels(self, split: str) -> np.ndarray:
        """The labels [N] of `split`."""
        return np.array([row.label for row in self._rows[split]], np.int64)

    def sample(self, split: str, number: int) -> Sample:
        """The `number`-th sample of `split`, its region in pixels of the image as stored.

        Raises UserError where its file cannot be read.
        """
        row = self._rows[split][number]
        path = PurePosixPath(row.path)
        image, origin = self._reader.read(row.path), f"{self._reader.where}: {row.path}"
        try:
            roi = scaled_region(row.region, row.size, image_size(image))
        except ValueError as error:
            raise UserError(f"{origin}: {error}") from None
        key = f"{row.label:05d}/{path.stem}"
        return Sample(key, row.label, image, path.suffix[1:].lower(), row.group, roi, origin)


def open_gtsrb(source: Path | None) -> SignContents:
    """The signs with their regions of interest; frames of one track of the training set form a group.

    Raises UserError where no table is found, a row cannot be read, a listed image is missing, an image is not listed,
    or a class has no training image.
    """
    if source is None:
        raise UserError(
            "dataset gtsrb needs data.source (--from): the folder the archives were unpacked to, or a tar of it"
        )
    tree = open_tree(source)
    rows = _official_rows(tree) or _repacked_rows(tree)
    _require_complete(tree, rows)
    for label, name in enumerate(CLASS_NAMES):
        if not any(row.label == label for row in rows["train"]):
            raise UserError(f"{source}: class {label} ({name}) has no training images")
    return SignContents(tree, {"train": _with_tracks(rows["train"]), "test": rows["test"]})


def _official_rows(tree: Tree) -> dict[str, list[_Row]] | None:
    """The rows of the official layout by split; None where the source has another."""
    found = ([path for path in tree.files if table.fullmatch(path)] for table in _TRAIN_TABLES)
    train_tables = next((paths for paths in found if paths), None)
    if train_tables is None:
        return None
    train = [row for table in train_tables for row in _rows(tree, table, _folder(table), _OFFICIAL)]
    top = re.split(r"(?:Final_)?Training/", train_tables[0])[0]
    test_images = f"{top}Final_Test/Images"
    test_table = next((path for path in tree.files if PurePosixPath(path).name == "GT-final_test.csv"), None)
    if test_table is None:
        raise UserError(f"{tree.where}: no GT-final_test.csv; unpack GTSRB_Final_Test_GT.zip beside the images")
    return {"train": train, "test": list(_rows(tree, test_table, test_images, _OFFICIAL))}


def _repacked_rows(tree: Tree) -> dict[str, list[_Row]]:
    """The rows of the repacked layout by split. Raises UserError where a table is missing."""
    train_table = next((path for path in tree.files if PurePosixPath(path).name in _REPACKED), None)
    if train_table is None:
        raise UserError(
            f"{tree.where}: no GTSRB found; expected GTSRB/Final_Training/Images/<class>/GT-<class>.csv, "
            f"GTSRB/Training/<class>/GT-<class>.csv, train.csv or Train.csv{_archives(tree)}"
        )
    root, name = PurePosixPath(train_table).parent, PurePosixPath(train_table).name
    test_table = str(root / name.replace("rain", "est"))
    if test_table not in tree.files:
        raise UserError(f"{tree.where}: {test_table} is missing")
    tables = {"train": train_table, "test": test_table}
    return {split: list(_rows(tree, table, str(root), _REPACKED[name])) for split, table in tables.items()}


def _archives(tree: Tree) -> str:
    """The archives in the source, for a message, which are to be unpacked; "" where there are none."""
    found = [path for path in tree.files if path.lower().endswith(".zip")]
    return f"; unpack {', '.join(found)}" if found else ""


def _rows(tree: Tree, table: str, folder: str, layout: _Layout) -> Iterator[_Row]:
    """The rows of a table, whose file names are relative to `folder`. Raises UserError for one that cannot be read."""
    try:
        reader = csv.DictReader(io.StringIO(text_of(tree.read(table))), delimiter=layout.delimiter)
    except UnicodeDecodeError as error:
        raise UserError(f"{tree.where}: {table}: not UTF-8 text ({error}); save it as UTF-8") from None
    if missing := [column for column in (layout.file, *layout.columns) if column not in (reader.fieldnames or [])]:
        raise UserError(
            f"{tree.where}: {table}: no column {missing[0]}; expected a heading, {layout.delimiter!r} between fields"
        )
    for row in reader:
        try:
            width, height, x1, y1, x2, y2, label = (int(row[column]) for column in layout.columns)
            path = PurePosixPath(folder) / row[layout.file].replace("\\", "/")
            if not 0 <= label < len(CLASS_NAMES):
                raise ValueError(f"class {label} is outside 0 to {len(CLASS_NAMES) - 1}")
            if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
                raise ValueError(f"region {x1},{y1},{x2},{y2} does not lie in an image of {width} x {height}")
        except (TypeError, ValueError, AttributeError) as error:
            raise UserError(f"{tree.where}: {table} line {reader.line_num}: unreadable row ({error})") from None
        yield _Row(str(path), label, (x1, y1, x2, y2), (width, height))


def _with_tracks(rows: list[_Row]) -> list[_Row]:
    """The rows with their track as group: frames of a class whose names are the same up to the last underscore.

    A frame is called <track>_<frame> or <class>_<track>_<frame>; one without an underscore is a track of its own.
    """
    tracks: dict[tuple[int, str], int] = {}
    grouped = []
    for row in rows:
        name = PurePosixPath(row.path).stem
        track = (row.label, name.rpartition("_")[0] or name)
        grouped.append(replace(row, group=tracks.setdefault(track, len(tracks))))
    return grouped


def _require_complete(tree: Tree, rows: dict[str, list[_Row]]) -> None:
    """Raise UserError unless the tables and the images in their folders name each other."""
    listed = {row.path for of_split in rows.values() for row in of_split}
    folders = {_folder(path) for path in listed}
    present = {path for path in tree.files if _folder(path) in folders and is_image(path)}
    if missing := sorted(listed - present):
        raise UserError(f"{tree.where}: {missing[0]} is listed but missing ({len(missing)} such images)")
    if unlisted := sorted(present - listed):
        raise UserError(f"{tree.where}: {unlisted[0]} is in no table ({len(unlisted)} such images)")


def _folder(path: str) -> str:
    """The folder of a file of the source."""
    return str(PurePosixPath(path).parent)
