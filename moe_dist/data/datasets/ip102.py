"""IP102 (Wu et al. 2019): insect pests in 102 classes, each of which feeds on one of eight crops.

Its files: images/*.jpg, train.txt, val.txt and test.txt ("00002.jpg 0"), classes.txt ("1  rice leaf roller").
"""

from __future__ import annotations

import re
from pathlib import Path

from moe_dist.data.datasets.listed import find_table, listed_contents, read_lines, read_list
from moe_dist.data.datasets.samples import PathContents
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.errors import UserError

LISTS = {split: f"{split}.txt" for split in ("train", "val", "test")}
CROPS_FILE = "superclasses.txt"
CROPS = """
1-14 Rice
15-27 Corn
28-36 Wheat
37-44 Beet
45-57 Alfalfa
58-73 Vitis
74-92 Citrus
93-102 Mango
"""
"""The paper's crops, for all 102 classes; a file superclasses.txt of such lines beside classes.txt goes before them."""
_CLASS = re.compile(r"\s*(\d{1,6})\s+(.*\S)\s*")
_RANGE = re.compile(r"\s*(\d{1,6})\s*-\s*(\d{1,6})\s+(.*\S)\s*")


def open_ip102(source: Path | None) -> PathContents:
    """The pests, with their crops as superclasses.

    Raises UserError where a list, classes.txt or an image is missing, a line cannot be read or occurs twice, or a
    label is outside the classes.
    """
    if source is None:
        raise UserError("dataset ip102 needs data.source (--from): the folder of images/, train.txt, val.txt, test.txt")
    tree = open_tree(source)
    names = _class_names(tree)
    listings = {split: read_list(tree, name) for split, name in LISTS.items()}
    return listed_contents(tree, listings, names, _superclasses(tree, len(names)))


def _class_names(tree: Tree) -> list[str]:
    """The names in classes.txt. A name that comes a second time, as "alfalfa weevil" does, is given its number."""
    table = find_table(tree, "classes.txt")
    if table is None:
        raise UserError(f"{tree.where}: no classes.txt; put it beside train.txt")
    names: list[str] = []
    for number, line in enumerate(read_lines(tree, table), start=1):
        match = _CLASS.fullmatch(line)
        if match is None or int(match[1]) != number:
            raise UserError(f"{tree.where}: {table} line {number}: expected `{number} name`, got {line[:80]!r}")
        names.append(match[2] if match[2] not in names else f"{match[2]} ({number})")
    return names


def _superclasses(tree: Tree, classes: int) -> list[str] | None:
    """Every class's crop, from ranges of the numbers in classes.txt; None where neither file nor paper says."""
    table = find_table(tree, CROPS_FILE)
    if table is not None:
        return _parse_ranges(f"{tree.where}: {table}", read_lines(tree, table), classes)
    return _parse_ranges("the paper", CROPS.split("\n")[1:-1], classes) if classes == 102 else None


def _parse_ranges(where: str, lines: list[str], classes: int) -> list[str]:
    crops: list[str] = []
    for number, line in enumerate(lines, start=1):
        match = _RANGE.fullmatch(line)
        if match is None or int(match[1]) != len(crops) + 1 or not int(match[1]) <= int(match[2]) <= classes:
            raise UserError(
                f"{where} line {number}: expected `{len(crops) + 1}-LAST name`, LAST at most {classes}, "
                f"got {line[:80]!r}"
            )
        crops += [match[3]] * (int(match[2]) - len(crops))
    if len(crops) < classes:
        raise UserError(f"{where}: classes {len(crops) + 1} to {classes} are in no range")
    return crops
