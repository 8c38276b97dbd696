"""One's own images: a folder or tar of train|test/<class>/*."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from moe_dist.data.decode import EXTENSIONS
from moe_dist.data.samples import SPLITS, FileContents, FileEntry
from moe_dist.data.source import Tree, open_tree
from moe_dist.errors import UserError

_KEY_CHARACTERS = 48


def open_image_folder(source: Path | None) -> FileContents:
    """The images below train/ and test/, labelled by the sorted names of the class folders of train/.

    Both may lie one folder down. Raises UserError where train or test is missing, a class folder holds no image, test
    has a class that train has not, or a file there is no image in a class folder.
    """
    if source is None:
        raise UserError(
            "dataset image_folder needs data.source: a folder or tar that holds train/<class>/* and test/<class>/*"
        )
    tree = open_tree(source)
    root = _root(tree)
    class_names = _subfolders(tree, f"{root}train/")
    labels = {name: label for label, name in enumerate(class_names)}
    return FileContents(tree, class_names, {split: _entries(tree, f"{root}{split}/", labels) for split in SPLITS})


def _root(tree: Tree) -> str:
    """What stands before train/ and test/: nothing, or the one top folder and a slash."""
    tops = sorted(folder for folder in tree.folders if "/" not in folder)
    for root in ("", *(f"{top}/" for top in tops if len(tops) == 1)):
        if all(f"{root}{split}" in tree.folders for split in SPLITS):
            return root
    raise UserError(
        f"{tree.where}: no train and test folder; expected train/<class>/* and test/<class>/*, found "
        f"{', '.join(tops) or 'no folder'}"
    )


def _subfolders(tree: Tree, parent: str) -> list[str]:
    below = (folder.removeprefix(parent) for folder in tree.folders if folder.startswith(parent))
    return sorted(name for name in below if "/" not in name)


def _entries(tree: Tree, parent: str, labels: dict[str, int]) -> list[FileEntry]:
    """The images below `parent`; keys carry the class, a number in it and the file's name."""
    for name in _subfolders(tree, parent):
        if name not in labels:
            raise UserError(f"{tree.where}: {parent}{name}: class {name} has no folder in train")
    numbers = dict.fromkeys(labels, 0)
    entries = []
    for path in tree.files:
        if path.startswith(parent):
            name = _class_of(tree, path, parent)
            key = f"{labels[name]:05d}/{numbers[name]:06d}_{_key_text(PurePosixPath(path).stem)}"
            numbers[name] += 1
            entries.append(FileEntry(path, key, labels[name]))
    for name in _subfolders(tree, parent):
        if not numbers[name]:
            raise UserError(f"{tree.where}: {parent}{name}: the class folder holds no images")
    return entries


def _class_of(tree: Tree, path: str, parent: str) -> str:
    name, slash, _ = path.removeprefix(parent).partition("/")
    if not slash or path.rpartition(".")[2].lower() not in EXTENSIONS:
        raise UserError(
            f"{tree.where}: {path}: not a {', '.join(EXTENSIONS)} file in a class folder; convert, move or remove it"
        )
    return name


def _key_text(stem: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", stem)[:_KEY_CHARACTERS]
