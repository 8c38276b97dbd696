"""A user's own images: a folder or tar of train|val|test/<class>/* and, for images without a label, train/unlabelled/*.

Classes are called by their folders' names in Unicode's composed form: macOS writes an accent as a character of its own.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from moe_dist.data.datasets.samples import SPLITS, PathContents, is_image
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.data.longtail import UNLABELLED
from moe_dist.errors import UserError

_ALSO = {"val": ("valid", "validation")}
"""Other names of a split's folder, as tools export it."""
UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
"""Folders of train/ whose images have no label."""
READING = "images are called by their paths"
"""What shards hold beside images and labels, as part of a source's fingerprint."""


def open_image_folder(source: Path | None) -> PathContents:
    """The images below train/, test/ and, where there is one, val/, labelled by the sorted class folders of train/.

    These folders may lie one folder down. Raises UserError where train or test is missing, a class folder holds no
    image, test or val has a class that train does not have, or a file is not an image in a class folder. Images of
    train/unlabelled/ have no label.
    """
    if source is None:
        raise UserError(
            "dataset image_folder needs data.source (--from): a folder or tar of train/<class>/* and test/<class>/*"
        )
    return class_folders(open_tree(source))


def class_folders(tree: Tree) -> PathContents:
    """The images of a tree of train|val|test/<class>/*. Raises UserError like `open_image_folder`."""
    root = _root(tree)
    _require_no_twins(tree, root)
    class_names = _class_names(tree, f"{root}train/")
    labels = {name: label for label, name in enumerate(class_names)}
    unlabelled = dict.fromkeys(UNLABELLED_FOLDERS, UNLABELLED)
    parents = {split: _split_folder(tree, root, split) for split in SPLITS}
    images = {
        split: _images(tree, parent, labels | unlabelled if split == "train" else labels)
        for split, parent in parents.items()
        if parent
    }
    return PathContents(tree, class_names, images, named_below=root)


def _root(tree: Tree) -> str:
    """The prefix of train/ and test/: nothing, or the one top folder and a slash."""
    tops = sorted(folder for folder in tree.folders if "/" not in folder)
    for root in ("", *(f"{top}/" for top in tops if len(tops) == 1)):
        if all(f"{root}{split}" in tree.folders for split in ("train", "test")):
            return root
    lacking = [split for split in ("train", "test") if split not in tops]
    raise UserError(
        f"{tree.where}: no {' and '.join(lacking)} folder; expected train/<class>/* and test/<class>/*, found "
        f"{', '.join(tops) or 'no folder'}"
    )


def _split_folder(tree: Tree, root: str, split: str) -> str | None:
    """The folder of a split and a slash; None where there is none. Raises UserError where there are two."""
    found = [f"{root}{name}" for name in (split, *_ALSO.get(split, ())) if f"{root}{name}" in tree.folders]
    if len(found) > 1:
        raise UserError(f"{tree.where}: both {found[0]} and {found[1]}: which is the {split} split? Remove the other")
    return f"{found[0]}/" if found else None


def _class_names(tree: Tree, train: str) -> list[str]:
    """The classes, sorted by their folders' names.

    Raises UserError for one that no table could show, for two alike, and where all images are without a label.
    """
    names: dict[str, str] = {}
    folders = _subfolders(tree, train)
    classes = [folder for folder in folders if folder not in UNLABELLED_FOLDERS]
    if folders and not classes:
        raise UserError(
            f"{tree.where}: {train} holds only images without a label; put a few of each class into {train}<class>/"
        )
    for folder in classes:
        if any(unicodedata.category(character) == "Cc" for character in folder):
            raise UserError(
                f"{tree.where}: {train}{folder!r}: a class's name has control characters; rename the folder"
            )
        if (other := names.setdefault(_composed(folder), folder)) != folder:
            raise UserError(f"{tree.where}: {train}{other} and {train}{folder} look alike; rename or join the folders")
    return sorted(names)


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _require_no_twins(tree: Tree, root: str) -> None:
    """Raise UserError where a folder of images is found at two places, so that its images would be read twice."""
    read = tuple(parent for split in SPLITS if (parent := _split_folder(tree, root, split)))
    for twin in tree.twins:
        if all(f"{path}/".startswith(read) for path in twin):
            raise UserError(f"{tree.where}: {twin[0]} and {twin[1]} are the same folder (a link); remove one of them")


def _subfolders(tree: Tree, parent: str) -> list[str]:
    """The names of the folders directly below `parent`, sorted."""
    below = (folder.removeprefix(parent) for folder in tree.folders if folder.startswith(parent))
    return sorted(name for name in below if "/" not in name)


def _bare(name: str) -> str:
    """A class's name without what is hard to see in it."""
    return _composed(name).strip().casefold()


def _images(tree: Tree, parent: str, label_of: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """(paths, labels [N]) of the images below `parent`, by path."""
    folders = _subfolders(tree, parent)
    for name in folders:
        if _composed(name) not in label_of:
            if name in UNLABELLED_FOLDERS:
                raise UserError(f"{tree.where}: {parent}{name}: only train may hold images without a label; remove it")
            near = next((known for known in label_of if _bare(known) == _bare(name)), None)
            hint = "" if near is None else f" (train has {near!r}, not {name!r})"
            raise UserError(f"{tree.where}: {parent}{name}: class {name} has no folder in train{hint}")
    paths = [path for path in tree.files if path.startswith(parent)]
    if stray := [path for path in paths if "/" not in path.removeprefix(parent) or not is_image(path)]:
        kinds = ", ".join(EXTENSIONS)
        raise UserError(
            f"{tree.where}: {stray[0]}: not a {kinds} file in a class folder; convert, move or remove it "
            f"({len(stray):,} such files)"
        )
    names = [path.removeprefix(parent).partition("/")[0] for path in paths]
    if empty := sorted(set(folders) - set(names)):
        kind = "folder of images without a label" if empty[0] in UNLABELLED_FOLDERS else "class folder"
        raise UserError(f"{tree.where}: {parent}{empty[0]}: the {kind} holds no images")
    return paths, np.array([label_of[_composed(name)] for name in names], np.int64)
