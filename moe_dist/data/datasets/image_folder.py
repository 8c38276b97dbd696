"""A user's own images: a folder or tar of train|val|test/<class>/*."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moe_dist.data.datasets.samples import SPLITS, PathContents, is_image
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.errors import UserError


def open_image_folder(source: Path | None) -> PathContents:
    """The images below train/, test/ and, where there is one, val/, labelled by the sorted class folders of train/.

    These folders may lie one folder down. Raises UserError where train or test is missing, a class folder holds no
    image, test or val has a class that train does not have, or a file is not an image in a class folder.
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
    class_names = _subfolders(tree, f"{root}train/")
    labels = {name: label for label, name in enumerate(class_names)}
    present = [split for split in SPLITS if f"{root}{split}" in tree.folders]
    return PathContents(tree, class_names, {split: _images(tree, f"{root}{split}/", labels) for split in present})


def _root(tree: Tree) -> str:
    """The prefix of train/ and test/: nothing, or the one top folder and a slash."""
    tops = sorted(folder for folder in tree.folders if "/" not in folder)
    for root in ("", *(f"{top}/" for top in tops if len(tops) == 1)):
        if all(f"{root}{split}" in tree.folders for split in ("train", "test")):
            return root
    raise UserError(
        f"{tree.where}: no train and test folder; expected train/<class>/* and test/<class>/*, found "
        f"{', '.join(tops) or 'no folder'}"
    )


def _require_no_twins(tree: Tree, root: str) -> None:
    """Raise UserError where a folder of images is found at two places, so that its images would be read twice."""
    read = tuple(f"{root}{split}" for split in SPLITS)
    for twin in tree.twins:
        if all(f"{path}/".startswith(tuple(f"{split}/" for split in read)) for path in twin):
            raise UserError(f"{tree.where}: {twin[0]} and {twin[1]} are the same folder (a link); remove one of them")


def _subfolders(tree: Tree, parent: str) -> list[str]:
    """The names of the folders directly below `parent`, sorted."""
    below = (folder.removeprefix(parent) for folder in tree.folders if folder.startswith(parent))
    return sorted(name for name in below if "/" not in name)


def _images(tree: Tree, parent: str, label_of: dict[str, int]) -> tuple[list[str], np.ndarray]:
    """(paths, labels [N]) of the images below `parent`, by path."""
    folders = _subfolders(tree, parent)
    for name in folders:
        if name not in label_of:
            raise UserError(f"{tree.where}: {parent}{name}: class {name} has no folder in train")
    paths = [path for path in tree.files if path.startswith(parent)]
    names = []
    for path in paths:
        name, slash, _ = path.removeprefix(parent).partition("/")
        if not slash or not is_image(path):
            kinds = ", ".join(EXTENSIONS)
            raise UserError(f"{tree.where}: {path}: not a {kinds} file in a class folder; convert, move or remove it")
        names.append(name)
    if empty := sorted(set(folders) - set(names)):
        raise UserError(f"{tree.where}: {parent}{empty[0]}: the class folder holds no images")
    return paths, np.array([label_of[name] for name in names], np.int64)
