"""Datasets published as lists of files: ImageNet-LT, Places-LT, IP102, and iNaturalist 2018's text lists.

A list has one image a line: its path, white space, its label. Paths start at some folder of the source: the one in
which the list's first image lies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path, PurePosixPath

import numpy as np

from moe_dist.data.datasets.samples import PathContents, is_image
from moe_dist.data.datasets.source import Tree, open_tree, text_of
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.errors import UserError

IMAGENET_LT = {split: f"ImageNet_LT_{split}.txt" for split in ("train", "val", "test")}
PLACES_LT = {split: f"Places_LT_{split}.txt" for split in ("train", "val", "test")}
_LABEL = re.compile(r"\d{1,6}")


@dataclass(frozen=True)
class Listing:
    """Images in the order of a list: their paths as written and labels [N]; table, unit: how a message names a line."""

    table: str
    unit: str
    paths: Sequence[str]
    labels: np.ndarray

    def place(self, number: int) -> str:
        """The place of the `number`-th image (from 0) in the list, for messages."""
        return f"{self.table} {self.unit} {number + 1}"


def open_lists(source: Path | None, dataset: str, lists: Mapping[str, str]) -> PathContents:
    """The images of the text files `lists` (by split); classes are called after their folders.

    Raises UserError where a list or an image is missing, a line cannot be read or occurs twice, an image is in two
    lists, or labels are not 0, 1, 2 ... with training images of each.
    """
    if source is None:
        raise UserError(f"dataset {dataset} needs data.source (--from): a folder with the images and {lists['train']}")
    tree = open_tree(source)
    listings = {split: read_list(tree, name) for split, name in lists.items()}
    return listed_contents(tree, listings)


def listed_contents(
    tree: Tree,
    listings: Mapping[str, Listing],
    class_names: Sequence[str] | None = None,
    superclasses: Sequence[str] | None = None,
) -> PathContents:
    """The listed images of `tree`; without `class_names` classes are called after folders. Raises like `open_lists`."""
    names = class_names or _folder_names(listings["train"], _count_classes(tree, listings["train"]))
    _require_labels(tree, listings, names)
    splits = {split: (_resolve(tree, listing), listing.labels) for split, listing in listings.items()}
    for one, other in combinations(splits, 2):
        if common := set(splits[one][0]) & set(splits[other][0]):
            raise UserError(f"{tree.where}: {min(common)} is in both {listings[one].table} and {listings[other].table}")
    return PathContents(tree, names, splits, superclasses)


def find_table(tree: Tree, name: str) -> str | None:
    """The path of the file called `name` in the tree, or None. Raises UserError where there are two or more."""
    found = [path for path in tree.files if path.rpartition("/")[2] == name]
    if len(found) > 1:
        raise UserError(f"{tree.where}: both {found[0]} and {found[1]}: remove one, or set data.source more narrowly")
    return found[0] if found else None


def read_lines(tree: Tree, table: str) -> list[str]:
    """The lines of a text file, without empty ones at its end. Raises UserError where it is not UTF-8 or empty."""
    try:
        lines = text_of(tree.read(table)).rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{tree.where}: {table}: not UTF-8 text ({error}); save it as UTF-8") from None
    if not lines:
        raise UserError(f"{tree.where}: {table} is empty")
    return lines


def read_list(tree: Tree, name: str) -> Listing:
    r"""The list called `name`; `\` between folders, as on Windows, is read as `/`.

    Raises UserError where it is missing or one of its lines cannot be read.
    """
    table = find_table(tree, name)
    if table is None:
        raise UserError(f"{tree.where}: no {name}; put the dataset's lists beside its images")
    paths, labels = [], []
    for number, line in enumerate(read_lines(tree, table), start=1):
        path, *label = line.rsplit(maxsplit=1) or [""]
        if not label or not _LABEL.fullmatch(label[0]):
            raise UserError(f"{tree.where}: {table} line {number}: not a path and a label: {line[:80]!r}")
        paths.append(path.strip().replace("\\", "/").removeprefix("./").lstrip("/"))
        labels.append(int(label[0]))
    return Listing(table, "line", paths, np.array(labels, np.int64))


def _count_classes(tree: Tree, train: Listing) -> int:
    """The number of classes of a training list, whose labels must be 0, 1, 2 ... without a gap."""
    present = np.unique(train.labels)
    if (gaps := np.flatnonzero(present != np.arange(len(present)))).size:
        number = int(np.argmax(train.labels))
        raise UserError(
            f"{tree.where}: {train.place(number)}: label {train.labels[number]}, but class {gaps[0]} has no image"
        )
    return len(present)


def _folder_names(train: Listing, classes: int) -> list[str]:
    """The classes' names: the folder of each one's first image where all of these differ, else "class 17"."""
    first = np.unique(train.labels, return_index=True)[1]
    folders = [PurePosixPath(train.paths[number]).parent.name for number in first.tolist()]
    distinct = "" not in folders and len(set(folders)) == classes
    return folders if distinct else [f"class {label}" for label in range(classes)]


def _require_labels(tree: Tree, listings: Mapping[str, Listing], class_names: Sequence[str]) -> None:
    """Raise UserError unless every label names a class and every class has a training image."""
    classes = len(class_names)
    for listing in listings.values():
        if (outside := np.flatnonzero((listing.labels < 0) | (listing.labels >= classes))).size:
            number = int(outside[0])
            raise UserError(
                f"{tree.where}: {listing.place(number)}: label {listing.labels[number]} is outside 0 to {classes - 1}"
            )
    counts = np.bincount(listings["train"].labels, minlength=classes)
    if not counts.all():
        label = int(np.argmin(counts))
        raise UserError(f"{tree.where}: {listings['train'].table}: class {label} ({class_names[label]}) has no image")


def _resolve(tree: Tree, listing: Listing) -> list[str]:
    """The listed images' paths in the tree. Raises UserError for one that is missing, listed twice or not an image."""
    root = _root(tree, listing)
    paths = [root + path for path in listing.paths]
    missing = set(paths).difference(tree.files)
    seen: set[str] = set()
    for number, path in enumerate(paths):
        if path in missing:
            raise UserError(f"{tree.where}: {listing.place(number)}: no file {path} ({len(missing)} such images)")
        if path in seen:
            raise UserError(f"{tree.where}: {listing.place(number)}: {path} is listed twice")
        if not is_image(path):
            raise UserError(f"{tree.where}: {listing.place(number)}: {path} is not a {', '.join(EXTENSIONS)} file")
        seen.add(path)
    return paths


def _root(tree: Tree, listing: Listing) -> str:
    """The prefix of a list's paths: the folder below which its first image lies, and a slash."""
    first = listing.paths[0]
    found = [path for path in tree.files if path == first or path.endswith(f"/{first}")]
    if not found:
        raise UserError(
            f"{tree.where}: {listing.place(0)}: no file {first} in any folder; unpack the images below data.source"
        )
    if len(found) > 1:
        raise UserError(
            f"{tree.where}: {listing.place(0)}: both {found[0]} and {found[1]} are there; set data.source more narrowly"
        )
    return found[0].removesuffix(first)
