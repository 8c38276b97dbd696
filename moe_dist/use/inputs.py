"""What is to be predicted: single images, folders and tars of them, and tables of vectors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from moe_dist.data.datasets.samples import is_image
from moe_dist.data.datasets.source import Tree, open_tree
from moe_dist.data.datasets.vectors import UNLABELLED, VectorContents, open_vectors
from moe_dist.data.image.decode import EXTENSIONS
from moe_dist.data.image.vectors import decode_vector
from moe_dist.errors import UserError
from moe_dist.use.preprocess import Preprocessing

TABLES = (".csv", ".npz", ".npy")
TARS = (".tar", ".tgz", ".gz", ".bz2", ".xz")
"""Compressed ones are refused with a sentence when they are opened."""


class Source(Protocol):
    """Where samples come from."""

    def read(self, key: Any) -> Any:
        """A sample as `Preprocessing.sample` takes it. Raises UserError or OSError where it cannot be read."""


@dataclass(frozen=True, slots=True)
class Item:
    """One sample: its name in the output, where it is read, and its class where a folder or table tells it."""

    name: str
    source: Source
    key: Any
    label: str | None = None

    def read(self) -> Any:
        """The sample, as `Preprocessing.sample` takes it."""
        return self.source.read(self.key)


@dataclass
class Inputs:
    """All samples, each name once; passed_over: the number of files that are no images by their name, by extension.

    notices: what the user should know, a sentence each.
    """

    items: list[Item] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    notices: list[str] = field(default_factory=list)


def open_inputs(paths: Sequence[Path], preprocessing: Preprocessing, classes: Sequence[str]) -> Inputs:
    """The samples of images, folders, tars and tables, in order, without those named twice.

    classes: the names of the training's classes; a folder whose subfolders are called so tells the class of its images.
    Raises UserError for a missing or damaged input, or one that the model does not take.
    """
    found = Inputs()
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such image, folder, tar or table")
        table = path.suffix.lower() in TABLES
        if table != bool(preprocessing.vector_size):
            raise UserError(f"{path}: {_takes(preprocessing)}")
        if table:
            found.items += _rows(path)
        elif path.is_dir() or path.suffix.lower() in TARS:
            found.items += _images(path, classes, found)
        else:
            found.items.append(Item(str(path), _Files(), path))
    found.items = list({item.name: item for item in reversed(found.items)}.values())[::-1]
    if found.passed_over:
        kinds = ", ".join(f"{count} {kind}" for kind, count in found.passed_over.most_common(5))
        total = found.passed_over.total()
        found.notices.append(f"{total} files passed over, which are not {', '.join(EXTENSIONS)} by their name: {kinds}")
    if not found.items:
        raise UserError(f"{', '.join(map(str, paths))}: no images there ({', '.join(EXTENSIONS)})")
    return found


def _takes(preprocessing: Preprocessing) -> str:
    """What the model takes, for a refusal."""
    if preprocessing.vector_size:
        return f"the model takes vectors of {preprocessing.vector_size} numbers; give a .csv, .npz or .npy file"
    return "the model takes images; give images, folders or tars of them"


class _Files:
    """Files of this machine."""

    def read(self, key: Path) -> bytes:
        return key.read_bytes()


@dataclass(frozen=True)
class _Table:
    """The rows of a table of vectors."""

    contents: VectorContents

    def read(self, key: int) -> Any:
        return decode_vector(self.contents.sample("test", key).image)


def _images(path: Path, classes: Sequence[str], found: Inputs) -> Iterator[Item]:
    """The images of a folder or tar, with their class where its subfolders are the classes."""
    tree = open_tree(path)
    images = [name for name in tree.files if is_image(name)]
    others = (PurePosixPath(name).suffix or "without extension" for name in tree.files if not is_image(name))
    found.passed_over.update(others)
    labelled = _are_classes(tree, images, classes, found)
    for name in images:
        yield Item(f"{path}/{name}", tree.reader, name, name.partition("/")[0] if labelled else None)


def _are_classes(tree: Tree, images: Sequence[str], classes: Sequence[str], found: Inputs) -> bool:
    """Whether every image lies in a subfolder that is called as a class. Where only some do, a notice says so."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in images}
    if other := tops - set(classes):
        if tops & set(classes):
            named = ", ".join(sorted(top or "the folder itself" for top in other)[:5])
            found.notices.append(f"{tree.where}: not scored, as images also lie in {named}, which is no class")
        return False
    return bool(tops)


def _rows(path: Path) -> Iterator[Item]:
    """The rows of a table; of an .npz with a test split, of that."""
    contents = open_vectors(path)
    labels = contents.labels("test").tolist()
    names = [None] if contents.class_names == (UNLABELLED,) else contents.class_names
    source = _Table(contents)
    for number, label in enumerate(labels):
        yield Item(f"{path}: row {number + 1}", source, number, names[label])
