"""iNaturalist 2018: 8,142 species, as the competition's JSON files or as the text lists that papers share.

JSON, like COCO's: images [id, file_name], annotations [image_id, category_id], categories [id, name]. The labels of the
competition's test set were never published: as in the papers, its validation set is the test split here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moe_dist.data.datasets.listed import Listing, find_table, listed_contents, open_lists
from moe_dist.data.datasets.samples import PathContents
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.errors import UserError

JSON_FILES = {"train": "train2018.json", "test": "val2018.json"}
TEXT_FILES = {"train": "iNaturalist18_train.txt", "test": "iNaturalist18_val.txt"}
NAMES_FILE = "categories.json"
"""The species' names, published after the competition; the competition's JSON files have numbers in their place."""

_LARGEST_ID = 2**31


def open_inat2018(source: Path | None) -> PathContents:
    """The species of train_val2018/, by train2018.json and val2018.json or by the text lists.

    Raises UserError where a file or image is missing, JSON is not of the form above, an image is listed twice, or
    labels are not 0, 1, 2 ... with training images of each.
    """
    if source is None:
        raise UserError("dataset inat2018 needs data.source (--from): the folder of train_val2018/ and train2018.json")
    tree = open_tree(source)
    if find_table(tree, JSON_FILES["train"]) is None:
        if find_table(tree, TEXT_FILES["train"]) is not None:
            return open_lists(source, "inat2018", TEXT_FILES)
        raise UserError(f"{source}: neither {JSON_FILES['train']} nor {TEXT_FILES['train']}; download one and its like")
    listings, names = {}, None
    for split, name in JSON_FILES.items():
        content, table = _load(tree, name)
        listings[split] = _listing(f"{tree.where}: {table}", table, content)
        if split == "train":
            names = _class_names(tree, table, content)
    return listed_contents(tree, listings, names)


def _load(tree: Tree, name: str) -> tuple[Any, str]:
    """(content, path) of the JSON file called `name`."""
    table = find_table(tree, name)
    if table is None:
        raise UserError(f"{tree.where}: no {name}; download it and put it beside train_val2018")
    try:
        return json.loads(tree.read(table)), table
    except (ValueError, RecursionError) as error:
        raise UserError(f"{tree.where}: {table}: not JSON, or damaged ({error})") from None


def _listing(where: str, table: str, content: Any) -> Listing:
    """The annotated images of one JSON file, in the order of their annotations."""
    images = _pairs(where, content, "images", ("id", int), ("file_name", str))
    annotations = _pairs(where, content, "annotations", ("image_id", int), ("category_id", int))
    path_of = dict(images)
    paths = []
    for number, (image, _) in enumerate(annotations, start=1):
        if image not in path_of:
            raise UserError(f"{where}: annotation {number}: image_id {image} is not the id of an image")
        paths.append(path_of[image])
    if len(path_of) < len(images):
        raise UserError(f"{where}: images: an id occurs twice")
    if unlabelled := path_of.keys() - {image for image, _ in annotations}:
        raise UserError(f"{where}: image {min(unlabelled)} has no annotation")
    return Listing(table, "annotation", paths, np.array([label for _, label in annotations], np.int64))


def _class_names(tree: Tree, table: str, content: Any) -> list[str] | None:
    """The species' names by label: from categories.json, else from the training file's categories, else None."""
    if (real := find_table(tree, NAMES_FILE)) is not None:
        content, table = {"categories": _load(tree, NAMES_FILE)[0]}, real
    elif "categories" not in content:
        return None
    where = f"{tree.where}: {table}"
    name_of = dict(_pairs(where, content, "categories", ("id", int), ("name", str)))
    if sorted(name_of) != list(range(len(content["categories"]))):
        raise UserError(f"{where}: categories: the ids are not 0, 1, 2 ...")
    return [name_of[label] for label in range(len(name_of))]


def _pairs(where: str, content: Any, table: str, *fields: tuple[str, type]) -> list[tuple[Any, ...]]:
    """Two `fields` (name, type) of every entry of the JSON's list `table`. Raises UserError where one is missing.

    Numbers must be 0 to 2^31 - 1.
    """
    entries = content.get(table) if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"{where}: no list `{table}`")
    pairs = []
    for number, entry in enumerate(entries, start=1):
        values = tuple(entry.get(field) if isinstance(entry, dict) else None for field, _ in fields)
        fits = all(type(value) is kind for value, (_, kind) in zip(values, fields))
        if not fits or not all(0 <= value < _LARGEST_ID for value in values if isinstance(value, int)):
            wanted = " and ".join(f"{field} ({kind.__name__})" for field, kind in fields)
            raise UserError(f"{where}: {table} entry {number}: expected {wanted}, got {str(entry)[:80]}")
        pairs.append(values)
    return pairs
