"""The German Traffic Sign Recognition Benchmark (Stallkamp et al. 2012): 43 classes, tracks of up to 30 frames.

Two layouts are read. Official: GTSRB/Final_Training/Images/<class>/*.ppm with GT-<class>.csv, and
GTSRB/Final_Test/Images/*.ppm with GT-final_test.csv, fields between semicolons. Repacked: train/<class>/* and
test/<class>/* with train.csv and test.csv beside them, fields between commas. Either may lie in further folders.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from moe_dist.data.datasets.samples import FileContents, FileEntry
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.data.image.decode import EXTENSIONS
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
_TRAIN_TABLE = re.compile(r"(?:.*/)?Final_Training/Images/(\d{5})/GT-\1\.csv")
_COLUMNS = ("width", "height", "roi_x1", "roi_y1", "roi_x2", "roi_y2", "class_id")
_OFFICIAL_COLUMNS = ("Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId")


@dataclass(frozen=True)
class _Layout:
    """How one layout writes its tables: what stands between fields, the file's column, and the numbers' columns."""

    delimiter: str
    file: str
    columns: tuple[str, ...]


_OFFICIAL = _Layout(";", "Filename", _OFFICIAL_COLUMNS)
_REPACKED = _Layout(",", "path", _COLUMNS)


def open_gtsrb(source: Path | None) -> FileContents:
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
    _demand_complete(tree, rows)
    for label, name in enumerate(CLASS_NAMES):
        if not any(entry.label == label for entry in rows["train"]):
            raise UserError(f"{source}: class {label} ({name}) has no training images")
    return FileContents(tree, CLASS_NAMES, {"train": _with_tracks(rows["train"]), "test": rows["test"]})


def _official_rows(tree: Tree) -> dict[str, list[FileEntry]] | None:
    train_tables = [path for path in tree.files if _TRAIN_TABLE.fullmatch(path)]
    if not train_tables:
        return None
    train = [entry for table in train_tables for entry in _rows(tree, table, _folder(table), _OFFICIAL)]
    test_images = _folder(train_tables[0]).replace("Final_Training", "Final_Test").rpartition("/")[0]
    test_table = next((path for path in tree.files if PurePosixPath(path).name == "GT-final_test.csv"), None)
    if test_table is None:
        raise UserError(f"{tree.where}: no GT-final_test.csv; unpack GTSRB_Final_Test_GT.zip beside the images")
    return {"train": train, "test": list(_rows(tree, test_table, test_images, _OFFICIAL))}


def _repacked_rows(tree: Tree) -> dict[str, list[FileEntry]]:
    train_table = next((path for path in tree.files if PurePosixPath(path).name == "train.csv"), None)
    if train_table is None:
        raise UserError(
            f"{tree.where}: no GTSRB found; expected GTSRB/Final_Training/Images/<class>/GT-<class>.csv, or train.csv"
        )
    root = _folder(train_table)
    tables = {split: str(PurePosixPath(root) / f"{split}.csv") for split in ("train", "test")}
    if tables["test"] not in tree.files:
        raise UserError(f"{tree.where}: {tables['test']} is missing")
    return {split: list(_rows(tree, table, root, _REPACKED)) for split, table in tables.items()}


def _rows(tree: Tree, table: str, folder: str, layout: _Layout) -> Iterator[FileEntry]:
    """The rows of one table; `folder` is what their file names are relative to."""
    text = tree.read(table).decode("utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text), delimiter=layout.delimiter)
    for row in reader:
        try:
            yield _entry(row, folder, layout)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{tree.where}: {table} line {reader.line_num}: unreadable row ({error})") from None


def _entry(row: dict[str, str], folder: str, layout: _Layout) -> FileEntry:
    width, height, x1, y1, x2, y2, label = (int(row[column]) for column in layout.columns)
    path = PurePosixPath(folder) / row[layout.file]
    if not 0 <= label < len(CLASS_NAMES):
        raise ValueError(f"class {label} is outside 0 to {len(CLASS_NAMES) - 1}")
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise ValueError(f"region {x1},{y1},{x2},{y2} does not lie in an image of {width} x {height}")
    return FileEntry(str(path), f"{label:05d}/{path.stem}", label, region=(x1, y1, x2, y2), region_size=(width, height))


def _with_tracks(entries: list[FileEntry]) -> list[FileEntry]:
    """The entries with their track as group: frames of a class whose names agree up to the underscore."""
    tracks: dict[tuple[int, str], int] = {}
    grouped = []
    for entry in entries:
        track = (entry.label, PurePosixPath(entry.path).stem.partition("_")[0])
        group = tracks.setdefault(track, len(tracks))
        grouped.append(FileEntry(entry.path, entry.key, entry.label, group, entry.region, entry.region_size))
    return grouped


def _demand_complete(tree: Tree, rows: dict[str, list[FileEntry]]) -> None:
    """Raise UserError unless tables and the images in their folders name each other."""
    listed = {entry.path for entries in rows.values() for entry in entries}
    folders = {_folder(path) for path in listed}
    present = {
        path for path in tree.files if _folder(path) in folders and path.rpartition(".")[2].lower() in EXTENSIONS
    }
    if missing := sorted(listed - present):
        raise UserError(f"{tree.where}: {missing[0]} is listed but missing ({len(missing)} such images)")
    if unlisted := sorted(present - listed):
        raise UserError(f"{tree.where}: {unlisted[0]} is in no table ({len(unlisted)} such images)")


def _folder(path: str) -> str:
    return str(PurePosixPath(path).parent)
